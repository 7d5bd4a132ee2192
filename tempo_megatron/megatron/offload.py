"""Moves a model's weights, gradients and optimizer state between its device and host memory.

Offloading copies a storage into a pinned host buffer and resizes the storage to 0 bytes. Onloading restores its size
and its bytes. Every tensor over the storage (parameters in DDP's flat buffers, their `main_grad`, the optimizer's
shards) stays the same object. No code may touch such a tensor while its storage is offloaded.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import time
import weakref
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
"""Each storage starts at a multiple of this many bytes in the host buffer, so that copy engines move whole lines."""
_Sized = tuple[UntypedStorage, int]
"""A storage and its size in bytes while it is on the device."""


class StateKind(StrEnum):
    """The kinds of model state that move separately."""

    weights = "weights"
    gradients = "gradients"
    optimizer = "optimizer"


class HostMemoryError(RuntimeError):
    """The offloaded state does not fit in the host memory that a rank may use."""


def offloaded_kinds(config: MemoryConfig, device: torch.device) -> frozenset[StateKind]:
    """Returns the kinds of state that a run on this device offloads."""
    settings = {
        StateKind.weights: config.offload_weights,
        StateKind.gradients: config.offload_gradients,
        StateKind.optimizer: config.offload_optimizer,
    }
    enabled = device.type == "cuda" or config.offload_on_cpu
    return frozenset(kind for kind, offloads in settings.items() if offloads and enabled)


def state_tensors(kind: StateKind, chunks: Sequence[Any], optimizer: Any = None) -> Iterator[Tensor]:
    """Yields the device tensors of one kind.

    `chunks` are the modules of a model, or DistributedDataParallel around each. `optimizer` is the model's
    DistributedOptimizer.
    """
    if kind is StateKind.weights:
        for chunk in chunks:
            yield from chunk.parameters()
    elif kind is StateKind.gradients:
        for chunk in chunks:
            if hasattr(chunk, "expert_parallel_buffers"):
                yield from (buffer.grad_data for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers])
    elif kind is StateKind.optimizer and optimizer is not None:
        for part in optimizer.chained_optimizers:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield parameter
                    yield from (value for value in part.optimizer.state[parameter].values() if torch.is_tensor(value))


def drop_quantized_copies(chunks: Sequence[Any]) -> None:
    """Frees the FP8 copies of the weights that Transformer Engine caches. The next forward pass creates them again."""
    for chunk in chunks:
        for part in chunk.modules():
            getattr(part, "_fp8_workspaces", {}).clear()


class Offloader:
    """Moves the state of one model to host memory and back.

    `state_tensors` returns the model's present tensors of a kind. A storage that two kinds share belongs to the first
    of them. Only the kinds in `moves` are ever offloaded. `seconds` sums the time that this thread spends on moves, and
    `bytes` sums the bytes copied in both directions.
    """

    def __init__(
        self, state_tensors: Callable[[StateKind], Iterable[Tensor]], moves: Collection[StateKind], device: torch.device
    ) -> None:
        self._tensors, self._moves, self._device = state_tensors, moves, device
        self._stream = cpu.new_stream()
        self._host = {kind: _HostBuffer(device, self._stream) for kind in (StateKind.weights, StateKind.optimizer)}
        self._offloaded: dict[StateKind, list[_Sized]] = {}
        self._copy_events: dict[StateKind, Any] = {}
        """The event that ends the copy back to the device, by kind."""
        self._host_copies: dict[StateKind, list[int]] = {}
        """The storages whose present bytes the host buffer holds, by kind."""
        self.seconds, self.bytes = 0.0, 0

    @property
    def offloaded(self) -> frozenset[StateKind]:
        """The kinds that are in host memory now."""
        return frozenset(self._offloaded)

    def host_bytes_needed(self) -> dict[StateKind, int]:
        """Returns the bytes of host memory that each kind takes while it is offloaded."""
        storages = {kind: self._offloaded.get(kind) or self._sized(kind) for kind in self._host if kind in self._moves}
        return {kind: _host_bytes(sized) for kind, sized in storages.items()}

    def offload(self, *kinds: StateKind) -> bool:
        """Copies these kinds to host memory, then frees their device memory; returns whether it freed any.

        Gradients are discarded. State that has not changed since its last copy is not copied again.
        """
        begun = time.monotonic()
        leaving = {kind: self._sized(kind) for kind in kinds if kind in self._moves and kind not in self._offloaded}
        if not leaving:
            return False
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for kind, storages in leaving.items():
                if kind in self._host and self._host_copies.get(kind) != _identities(storages):
                    self._host[kind].reserve(_host_bytes(storages))
                    self._copy(kind, storages, to_host=True)
                    self._host_copies[kind] = _identities(storages)
        # Freed memory may be overwritten at once, so every copy must have ended, copies to the device included.
        self._stream.synchronize()
        for kind, storages in leaving.items():
            self._offloaded[kind] = storages
            self._copy_events.pop(kind, None)
            for storage, _ in storages:
                storage.resize_(0)
        self.seconds += time.monotonic() - begun
        return True

    def prefetch(self, *kinds: StateKind) -> None:
        """Starts to copy these kinds back to the device, in this order. Call `onload` before any use.

        Kinds that are on the device are skipped.
        """
        returning = {kind: self._offloaded.pop(kind) for kind in kinds if kind in self._offloaded}
        if not returning:
            return
        begun = time.monotonic()
        for storages in returning.values():
            for storage, size in storages:
                storage.resize_(size)
        # The memory may have belonged to another tensor, whose use has ended for the current stream alone.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for kind, storages in returning.items():
                if kind in self._host:
                    self._copy(kind, storages, to_host=False)
                else:
                    for storage, _ in storages:
                        _bytes_of(storage).zero_()
                self._copy_events[kind] = self._stream.record_event()
        self.seconds += time.monotonic() - begun

    def onload(self, *kinds: StateKind) -> None:
        """Brings these kinds back to the device, gradients as zeros. The current stream may use them afterwards.

        Kinds that are on the device are skipped.
        """
        self.prefetch(*kinds)
        for kind in kinds:
            event = self._copy_events.pop(kind, None)
            if event:  # There is none on CPUs, where vLLM replaces torch's stream class by its own.
                torch.cuda.current_stream().wait_event(event)

    def invalidate_host_copies(self) -> None:
        """Records that the state on the device has changed since it was copied to the host."""
        self._host_copies.clear()

    def forget(self, kind: StateKind) -> None:
        """Drops all record of a kind, whose tensors the caller replaces by others."""
        event = self._copy_events.pop(kind, None)
        if event:  # The old memory must not be freed while a copy into it is under way.
            torch.cuda.current_stream().wait_event(event)
        self._offloaded.pop(kind, None)
        self._host_copies.pop(kind, None)

    def free(self, kind: StateKind) -> None:
        """Frees the device memory and the host memory of a kind for good."""
        storages = self._offloaded.pop(kind, None) or self._sized(kind)
        self._stream.synchronize()  # The memory must not be freed while a copy into it is under way.
        self._copy_events.pop(kind, None)
        self._host_copies.pop(kind, None)
        for storage, _ in storages:
            storage.resize_(0)
        if kind in self._host:
            self._host[kind].release()

    def _sized(self, kind: StateKind) -> list[_Sized]:
        """Returns the distinct storages on the device that belong to this kind, with their sizes in bytes."""
        owned_before: set[int] = set()
        for candidate in StateKind:
            owned = {}
            for tensor in self._tensors(candidate):
                storage = tensor.untyped_storage()
                if storage._cdata not in owned_before and storage.device == self._device:
                    owned[storage._cdata] = storage
            if candidate is kind:
                return [(storage, storage.nbytes()) for storage in owned.values()]
            owned_before |= owned.keys()
        return []

    def _copy(self, kind: StateKind, storages: Sequence[_Sized], *, to_host: bool) -> None:
        offset = 0
        for storage, size in storages:
            device_bytes, host_bytes = _bytes_of(storage), self._host[kind].bytes[offset : offset + size]
            target, source = (host_bytes, device_bytes) if to_host else (device_bytes, host_bytes)
            target.copy_(source, non_blocking=True)
            offset += _rounded(size)
            self.bytes += size


class _HostBuffer:
    """Host memory of one kind: allocated once, pinned where a GPU copies into it, and reused for each copy.

    The buffer registers its own pages with CUDA, because torch's pinned allocator rounds up to powers of two. Huge
    pages are pinned faster. Child processes get no copy of the pages: after a copy-on-write the GPU would still write
    into the old page.

    The registration ends before the pages go, also when the buffer is garbage-collected. CUDA would otherwise refuse to
    register or copy whatever is mapped at these addresses next. `stream` is that of all copies.
    """

    def __init__(self, device: torch.device, stream: Any) -> None:
        self._device, self._stream = device, stream
        self._registration: weakref.finalize[Any, Any] | None = None
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> None:
        """Makes the buffer at least `size` bytes large. Growing it loses its contents."""
        if size <= self.bytes.nbytes:
            return
        self.release()  # The old buffer is freed before the larger one is allocated.
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_DONTFORK)
        with contextlib.suppress(OSError):  # The kernel may have no huge pages.
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(pages, dtype=torch.uint8)
        with _all_cores():  # Registration would allocate the pages one by one.
            self.bytes.fill_(0)
        if self._device.type == "cuda":
            address = self.bytes.data_ptr()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, size, 0))
            # The finalizer watches the buffer, not its pages: mmap unmaps before it calls finalizers.
            self._registration = weakref.finalize(self, _unregister, address, self._device, self._stream)
            self._registration.atexit = False  # CUDA may have ended by then, and takes its registrations along.

    def release(self) -> None:
        """Returns the memory to the operating system."""
        if self._registration:
            self._registration()
        self.bytes = torch.empty(0, dtype=torch.uint8)


def _unregister(address: int, device: torch.device, stream: Any) -> None:
    """Ends the registration of the pages at `address`, after all copies on the stream.

    Garbage may be collected in any thread, and a thread's current GPU is the first one unless it sets another.
    """
    stream.synchronize()
    with torch.cuda.device(device):
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(address))


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Lets torch's operators use this rank's share of the cores. Launchers give a process one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_host_memory(offloaders: Mapping[str, Offloader], copies: int, config: MemoryConfig) -> None:
    """Raises HostMemoryError if these models need more host memory per rank than a rank may use. Collective.

    The need is the offloaded state and the `copies`, the bytes that this rank copies for asynchronous saves. Some ranks
    copy nothing, so the copies of a machine count as spread evenly over its ranks.
    """
    copied = _gather_on_machine(copies)
    ranks, machine = len(copied), host_memory.total_and_free()[0] / _GIB
    needs = {
        f"{name}'s {kind}": size / _GIB
        for name, offloader in offloaders.items()
        for kind, size in offloader.host_bytes_needed().items()
    }
    if any(copied):
        needs["asynchronous saves' copies"] = sum(copied) / ranks / _GIB
    budget = config.budget_gib(machine, ranks)
    if sum(needs.values()) > budget:
        listed = ", ".join(f"{name} {size:.3g}" for name, size in needs.items())
        share = f"{SHARE_OF_HOST:.0%} of {machine:.3g} GiB over {ranks} ranks"
        rule = "memory.host_gib" if config.host_gib else f"{share}; memory.host_gib"
        raise HostMemoryError(
            f"models need {sum(needs.values()):.3g} GiB of host memory a rank ({listed}) and may take "
            f"{budget:.3g} GiB ({rule} sets it): raise memory.host_gib if the machine has more, spread the models over "
            "more ranks, or keep a part on the GPU (memory.offload_weights, memory.offload_optimizer)"
        )


def _gather_on_machine(value: int) -> list[int]:
    """Returns the value of each rank on this machine. Collective."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (socket.gethostname(), value))
    return [other for host, other in gathered if host == socket.gethostname()]


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _host_bytes(storages: Sequence[_Sized]) -> int:
    return sum(_rounded(size) for _, size in storages)


def _identities(storages: Sequence[_Sized]) -> list[int]:
    return [storage._cdata for storage, _ in storages]


def _bytes_of(storage: UntypedStorage) -> Tensor:
    """Returns a view of a whole storage, [bytes] uint8, outside autograd."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
