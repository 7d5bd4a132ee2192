"""Host memory for offloaded state is unregistered from CUDA before its pages go."""

from __future__ import annotations

import contextlib
import gc
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.megatron.offload import Offloader, StateKind, _HostBuffer

DEVICE = torch.device("cuda", 1)
SIZE = 16 * mmap.PAGESIZE


def is_mapped(address: int) -> bool:
    """Whether this process has memory at the address."""
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(int(first, 16) <= address < int(end, 16) for first, end in ranges)


class FakeCuda:
    """Stands in for CUDA's registry of host pages and for the stream of copies, and notes the calls.

    As CUDA does, it refuses pages that are registered already, and those that nobody has registered.
    """

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.calls: list[tuple[str, int]] = []
        self.current_device: torch.device | None = None
        self._copies_ended = True

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert is_mapped(address) and is_mapped(address + size - 1) and flags == 0
        assert address not in self.registered
        self.registered[address] = size
        self.calls.append(("register", address))
        self._copies_ended = False
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        size = self.registered.pop(address)
        assert is_mapped(address) and is_mapped(address + size - 1), "the pages are gone"
        assert self.current_device == DEVICE and self._copies_ended
        self.calls.append(("unregister", address))
        return 0

    def synchronize(self) -> None:
        self._copies_ended = True

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.current_device = device
        yield
        self.current_device = None


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: fake)
    monkeypatch.setattr(torch.cuda, "device", fake.device)
    monkeypatch.setattr(torch.cuda, "check_error", [None].__getitem__)
    return fake


def reserved(cuda: FakeCuda) -> tuple[_HostBuffer, int]:
    """Returns a buffer of SIZE bytes, and the address of its registered pages."""
    buffer = _HostBuffer(DEVICE, cuda)
    buffer.reserve(SIZE)
    address = buffer.bytes.data_ptr()
    assert cuda.registered == {address: SIZE}
    return buffer, address


def test_a_released_buffer_is_unregistered_once(cuda: FakeCuda) -> None:
    """A second release, and the end of the buffer, do nothing more: its address may belong to another buffer."""
    buffer, address = reserved(cuda)
    buffer.release()
    assert not is_mapped(address) and buffer.bytes.nbytes == 0
    buffer.release()
    del buffer
    gc.collect()
    assert cuda.calls == [("register", address), ("unregister", address)]


def test_a_growing_buffer_gives_back_its_old_pages_first(cuda: FakeCuda) -> None:
    buffer, address = reserved(cuda)
    buffer.reserve(SIZE - 1)
    assert len(cuda.calls) == 1
    buffer.reserve(3 * SIZE)
    larger = buffer.bytes.data_ptr()
    assert cuda.registered == {larger: 3 * SIZE}
    del buffer
    expected = [("register", address), ("unregister", address), ("register", larger), ("unregister", larger)]
    assert cuda.calls == expected and not is_mapped(larger)


@pytest.mark.parametrize("in_cycle", [False, True])
def test_a_collected_buffer_is_unregistered_before_its_pages_go(in_cycle: bool, cuda: FakeCuda) -> None:
    """Protects processes that build several models. A model is part of cycles, and any thread may collect it."""
    buffer, address = reserved(cuda)
    owner: Any = SimpleNamespace(buffer=buffer)
    if in_cycle:
        owner.itself = owner
        buffer.owner = owner  # type: ignore[attr-defined]
    del buffer, owner
    assert (len(cuda.calls) == 1) == in_cycle
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    assert cuda.calls == [("register", address), ("unregister", address)]
    assert not is_mapped(address)


def test_a_buffer_that_lives_until_the_process_ends_is_left_to_cuda(cuda: FakeCuda) -> None:
    """At exit CUDA may have ended before, and a call to it fails."""
    buffer, _ = reserved(cuda)
    assert buffer._registration is not None and not buffer._registration.atexit


def test_cpus_register_nothing(cuda: FakeCuda) -> None:
    buffer = _HostBuffer(torch.device("cpu"), cuda)
    buffer.reserve(SIZE)
    buffer.release()
    assert cuda.calls == []


def test_an_offloader_ends_with_its_registrations(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the way from a model to its buffers: nothing else may keep one of them."""
    monkeypatch.setattr("tempo_megatron.megatron.cpu.new_stream", lambda: cuda)
    offloader = Offloader(lambda kind: (), frozenset(StateKind), DEVICE)
    for buffer in offloader._host.values():
        buffer.reserve(SIZE)
    assert len(cuda.registered) == 2
    del offloader, buffer
    gc.collect()
    assert not cuda.registered and len(cuda.calls) == 4
