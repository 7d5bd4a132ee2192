"""Device residency: which models and generator hold device memory in which phase.

Policy, critic, reference and generator take turns on the same device. When a phase begins, every model without work in
it moves to host memory, and the generator sleeps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from tempo_megatron.megatron.offload import StateKind
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.utils import host_memory
from tempo_megatron.utils.heartbeat import PhaseProgress, ticks

_GIB = 2**30
_GENERATOR = "generator"
_READ, _LEARN = frozenset({StateKind.weights}), frozenset(StateKind)
_NOTHING: frozenset[StateKind] = frozenset()

_WORKERS: dict[str, dict[str, frozenset[StateKind]]] = {
    "warm_start": {"policy": _LEARN},
    "copy": {"policy": _READ, "critic": _LEARN, "reference": _READ},
    "generate": {_GENERATOR: _NOTHING},
    "critic_metrics": {"critic": _READ},
    "values": {"critic": _READ},
    "e_step": {"critic": _LEARN},
    "advantages": {"policy": _READ, "critic": _READ, "reference": _READ},
    "m_step": {"policy": _LEARN},
    "sync": {_GENERATOR: _NOTHING, "policy": _READ},
    "evaluate": {_GENERATOR: _NOTHING},
    "token_samples": {"policy": _READ, "critic": _READ},
    "save": {},
}
"""The models that work in each phase, and the kinds of their state that may stay on the device.

When the phase begins, everything else leaves the device. A model that works moves its state to the device itself.
A phase without an entry uses no device, or enters another phase before it uses the device.
"""


@dataclass(frozen=True)
class _Stretch:
    """The time in a phase, or between two phases, where `phase` is ""."""

    phase: str
    first: bool
    """Whether this process is in the phase for the first time."""
    start: float = field(default_factory=time.monotonic)
    start_ticks: int = field(default_factory=ticks)
    """The process's count of ticks at the start."""


@dataclass
class DeviceResidency:
    """Moves models off the device when they have no work, and measures seconds and memory of each phase.

    `models` holds the models by name. `generator` is None until the run has built one.
    """

    device: torch.device
    models: dict[str, MegatronModel] = field(default_factory=dict)
    generator: Any = None

    def __post_init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._active: list[_Stretch] = []
        """The phases in progress, the innermost last."""
        self._between = _Stretch("", False)
        """The time since a phase last ended."""
        self._entered = 0
        self._known: set[str] = set()
        self._restart_measurement()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Enter a phase of the run. Phases may contain others; their seconds and memory include those."""
        self._record_peaks()
        if name in _WORKERS:
            self._free_device(_WORKERS[name])
        self._restart_measurement()
        stretch = _Stretch(name, name not in self._known)
        self._active.append(stretch)
        self._known.add(name)
        self._entered += 1
        try:
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - stretch.start
            self._record_peaks()
            self._restart_measurement()
        finally:
            self._between = _Stretch("", False)
            self._active.pop()

    def progress(self) -> PhaseProgress:
        """Return the phase that this rank is in and its progress there. Any thread may call it."""
        (stretch,) = self._active[-1:] or [self._between]  # read once: the main thread changes the list meanwhile
        seconds, new_ticks = time.monotonic() - stretch.start, ticks() - stretch.start_ticks
        return PhaseProgress(self._entered, stretch.phase, seconds, stretch.first, new_ticks)

    def take_usage(self) -> dict[str, float]:
        """Return timings and memory since the last call. They differ between any two runs.

        Device memory is what the driver counts as used, by vLLM and other processes too: torch's own count includes
        vLLM's memory even while vLLM sleeps and has freed it. Host memory is this process's resident set, with all
        model state that was moved to it.
        """
        self._record_peaks()
        self._restart_measurement()
        offloaders = [model.offloader for model in self.models.values()]
        usage = {f"seconds/{name}": value for name, value in self._seconds.items()}
        usage["seconds/offload"] = sum(offloader.seconds for offloader in offloaders)
        usage["memory/offloaded_gib"] = sum(offloader.bytes for offloader in offloaders) / _GIB
        usage |= self._peaks
        for offloader in offloaders:
            offloader.seconds, offloader.bytes = 0.0, 0
        self._seconds, self._peaks = {}, {}
        return {name: round(value, 3) for name, value in usage.items()}

    def _free_device(self, workers: dict[str, frozenset[StateKind]]) -> None:
        """Move to host memory whatever the workers do not need.

        The freed memory returns to the driver, because vLLM allocates its memory there.
        """
        if self.generator is not None and _GENERATOR not in workers:
            self.generator.sleep()
        has_freed = [model.offload(keep=workers.get(name, _NOTHING)) for name, model in self.models.items()]
        if any(has_freed) or _GENERATOR in workers:
            torch.cuda.empty_cache()

    def _restart_measurement(self) -> None:
        host_memory.reset_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._used, self._reserved = _device_used(self.device), torch.cuda.memory_reserved(self.device)

    def _record_peaks(self) -> None:
        """Record the peak memory since measurement last restarted, for the run and for each phase in progress."""
        peaks = {"host": host_memory.peak_bytes()}
        if self.device.type == "cuda":
            growth = torch.cuda.max_memory_reserved(self.device) - self._reserved
            peaks["device"] = max(self._used + growth, _device_used(self.device))
        for part in ["", *(f"{stretch.phase}/" for stretch in self._active)]:
            for memory, peak in peaks.items():
                name = f"memory/{part}{memory}_peak_gib"
                self._peaks[name] = max(self._peaks.get(name, 0.0), peak / _GIB)


def _device_used(device: torch.device) -> int:
    """Return the bytes of the device's memory that are in use, by any process."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free
