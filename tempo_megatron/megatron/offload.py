"""A model's weights, gradients and optimizer state between its device and host memory.

A storage is copied into a pinned host buffer and resized to nothing; on the way back it gets its size and its bytes
again. Every tensor that looks into it (parameters in DDP's flat buffers, their `main_grad`, the optimizer's shards)
stays the same object and is valid again, but none may be touched while it rests.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, UntypedStorage

from tempo_megatron.config import SHARE_OF_HOST, MemoryConfig
from tempo_megatron.megatron import cpu
from tempo_megatron.utils import host_memory

_GIB = 2**30
_ALIGNMENT = 512
"""bytes that a storage's place in a host buffer is rounded up to: whole lines for the copy engines"""
_Sized = tuple[UntypedStorage, int]
"""a storage, and its bytes when it does not rest"""


class Kind(StrEnum):
    weights = "weights"
    gradients = "gradients"
    optimizer = "optimizer"


class HostMemoryError(RuntimeError):
    """What rests would not fit in the host memory that it may take."""


def moving(config: MemoryConfig, device: torch.device) -> frozenset[Kind]:
    """The kinds that a run on this device offloads."""
    chosen = {
        Kind.weights: config.offload_weights,
        Kind.gradients: config.offload_gradients,
        Kind.optimizer: config.offload_optimizer,
    }
    there = device.type == "cuda" or config.offload_on_cpu
    return frozenset(kind for kind, moves in chosen.items() if moves and there)


def tensors(kind: Kind, model: Any, optimizer: Any = None) -> Iterator[Tensor]:
    """The device tensors of a module, or of DistributedDataParallel around one and its DistributedOptimizer."""
    if kind is Kind.weights:
        yield from model.parameters()
    elif kind is Kind.gradients and hasattr(model, "expert_parallel_buffers"):
        for buffer in [*model.buffers, *model.expert_parallel_buffers]:
            yield buffer.grad_data
    elif kind is Kind.optimizer and optimizer is not None:
        for part in optimizer.chained_optimizers:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield parameter
                    yield from (value for value in part.optimizer.state[parameter].values() if torch.is_tensor(value))


def drop_quantized_copies(module: Any) -> None:
    """Free what Transformer Engine keeps of the weights in FP8; the next forward pass makes it again."""
    for part in module.modules():
        getattr(part, "_fp8_workspaces", {}).clear()


class Offloader:
    """Lets the state of one model rest, and wakes it.

    `tensors` gives the model's present tensors of a kind; a storage that two kinds share belongs to the first of them.
    Only the kinds in `moves` ever rest. `seconds` of this thread and `bytes` copied, both ways, add up.
    """

    def __init__(
        self, tensors: Callable[[Kind], Iterable[Tensor]], moves: Collection[Kind], device: torch.device
    ) -> None:
        self._tensors, self._moves, self._device = tensors, moves, device
        self._stream = cpu.new_stream()
        self._host = {kind: _HostBuffer(device.type == "cuda") for kind in (Kind.weights, Kind.optimizer)}
        self._resting: dict[Kind, list[_Sized]] = {}
        self._arriving: dict[Kind, Any] = {}
        self._held: dict[Kind, list[int]] = {}
        """the storages whose bytes the host holds as they are"""
        self.seconds, self.bytes = 0.0, 0

    @property
    def resting(self) -> frozenset[Kind]:
        return frozenset(self._resting)

    def needs(self) -> dict[Kind, int]:
        """Bytes of host memory that each kind takes when it rests."""
        there = {kind: self._resting.get(kind) or self._sized(kind) for kind in self._host if kind in self._moves}
        return {kind: _host_bytes(storages) for kind, storages in there.items()}

    def rest(self, *kinds: Kind) -> bool:
        """Free the device memory of these kinds, once the host has what they hold; returns whether any was freed.

        Gradients are given up. What has not changed since its last copy is not copied again.
        """
        begun = time.monotonic()
        going = {kind: self._sized(kind) for kind in kinds if kind in self._moves and kind not in self._resting}
        if not going:
            return False
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for kind, storages in going.items():
                if kind in self._host and self._held.get(kind) != _identities(storages):
                    self._host[kind].reserve(_host_bytes(storages))
                    self._copy(kind, storages, to_host=True)
                    self._held[kind] = _identities(storages)
        # Memory given away is written by others at once: every copy, those of a wake too, must be over.
        self._stream.synchronize()
        for kind, storages in going.items():
            self._resting[kind] = storages
            self._arriving.pop(kind, None)
            for storage, _ in storages:
                storage.resize_(0)
        self.seconds += time.monotonic() - begun
        return True

    def fetch(self, *kinds: Kind) -> None:
        """Begin to bring back, in this order, those of the kinds that rest; `wake` must come before any use."""
        coming = {kind: self._resting.pop(kind) for kind in kinds if kind in self._resting}
        if not coming:
            return
        begun = time.monotonic()
        for storages in coming.values():
            for storage, size in storages:
                storage.resize_(size)
        # The memory may have been another tensor's, whose use is over for the current stream alone.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for kind, storages in coming.items():
                if kind in self._host:
                    self._copy(kind, storages, to_host=False)
                else:
                    for storage, _ in storages:
                        _bytes_of(storage).zero_()
                self._arriving[kind] = self._stream.record_event()
        self.seconds += time.monotonic() - begun

    def wake(self, *kinds: Kind) -> None:
        """Bring back those of the kinds that rest, gradients as zeros; the current stream may use them from here on."""
        self.fetch(*kinds)
        for kind in kinds:
            event = self._arriving.pop(kind, None)
            if event:  # CPUs have none, and vLLM puts a stream of its own in the place of theirs
                torch.cuda.current_stream().wait_event(event)

    def changed(self) -> None:
        """The device holds something newer than the host."""
        self._held.clear()

    def forget(self, kind: Kind) -> None:
        """The tensors of this kind are given up, and others take their place."""
        event = self._arriving.pop(kind, None)
        if event:  # nothing may be on its way into memory that is given up
            torch.cuda.current_stream().wait_event(event)
        self._resting.pop(kind, None)
        self._held.pop(kind, None)

    def give_up(self, kind: Kind) -> None:
        """Free what the model has of this kind, on the device and in host memory, for good."""
        going = self._resting.pop(kind, None) or self._sized(kind)
        self._stream.synchronize()  # nothing may be on its way into memory that is given up
        self._arriving.pop(kind, None)
        self._held.pop(kind, None)
        for storage, _ in going:
            storage.resize_(0)
        if kind in self._host:
            self._host[kind].release()

    def _sized(self, kind: Kind) -> list[_Sized]:
        """Distinct storages on the device that are of this kind alone, and their bytes."""
        found: dict[int, UntypedStorage] = {}
        for earlier in Kind:
            seen = set(found)
            mine = {}
            for tensor in self._tensors(earlier):
                storage = tensor.untyped_storage()
                if storage._cdata not in seen and storage.device == self._device:
                    mine[storage._cdata] = storage
            if earlier is kind:
                return [(storage, storage.nbytes()) for storage in mine.values()]
            found |= mine
        return []

    def _copy(self, kind: Kind, storages: Sequence[_Sized], *, to_host: bool) -> None:
        at = 0
        for storage, size in storages:
            here, there = _bytes_of(storage), self._host[kind].bytes[at : at + size]
            (there if to_host else here).copy_(here if to_host else there, non_blocking=True)
            at += _rounded(size)
            self.bytes += size


class _HostBuffer:
    """Host memory of one kind: taken once, pinned where a GPU copies into it, and used again each time.

    Registered rather than asked of torch's pinned allocator, which rounds up to powers of two. Huge pages are pinned
    sooner; and no child gets a copy, for a page that is copied on write would leave the GPU writing into the old one.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> None:
        """At least `size` bytes; what was in a smaller buffer is lost."""
        if size <= self.bytes.nbytes:
            return
        self.release()  # before the larger one is taken
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_DONTFORK)
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(pages, dtype=torch.uint8)
        with _all_cores():  # registering would make the pages one by one
            self.bytes.fill_(0)
        if self._pinned:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.bytes.data_ptr(), size, 0))

    def release(self) -> None:
        """Give the memory back."""
        if self._pinned and self.bytes.nbytes:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr()))
        self.bytes = torch.empty(0, dtype=torch.uint8)


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """torch's operators use this rank's part of the cores: launchers give a process one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_host_memory(offloaders: Mapping[str, Offloader], copies: int, config: MemoryConfig) -> None:
    """Raise HostMemoryError if what rests of these models needs more host memory than a rank may take, with the bytes
    that this rank copies for asynchronous saves. Some ranks copy nothing: a machine's copies count as shared evenly by
    its ranks. Collective."""
    copied = _of_this_machine(copies)
    ranks, machine = len(copied), host_memory.total_and_free()[0] / _GIB
    needs = {
        f"{name}'s {kind}": size / _GIB
        for name, offloader in offloaders.items()
        for kind, size in offloader.needs().items()
    }
    if any(copied):
        needs["asynchronous saves' copies"] = sum(copied) / ranks / _GIB
    budget = config.budget_gib(machine, ranks)
    if sum(needs.values()) > budget:
        listed = ", ".join(f"{what} {size:.3g}" for what, size in needs.items())
        share = f"{SHARE_OF_HOST:.0%} of {machine:.3g} GiB over {ranks} ranks"
        rule = "memory.host_gib" if config.host_gib else f"{share}; memory.host_gib"
        raise HostMemoryError(
            f"models need {sum(needs.values()):.3g} GiB of host memory a rank ({listed}) and may take "
            f"{budget:.3g} GiB ({rule} sets it): raise memory.host_gib if the machine has more, spread the models over "
            "more ranks, or keep a part on the GPU (memory.offload_weights, memory.offload_optimizer)"
        )


def _of_this_machine(value: int) -> list[int]:
    """The value of each rank on this machine."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), value))
    return [theirs for host, theirs in found if host == socket.gethostname()]


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _host_bytes(storages: Sequence[_Sized]) -> int:
    return sum(_rounded(size) for _, size in storages)


def _identities(storages: Sequence[_Sized]) -> list[int]:
    return [storage._cdata for storage, _ in storages]


def _bytes_of(storage: UntypedStorage) -> Tensor:
    """All of a storage, [bytes] uint8, apart from autograd."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
