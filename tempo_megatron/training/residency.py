"""Whose turn it is: models and generator share the device, and in each phase those that do not work rest."""

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
    "save": {},
    "export": {"policy": _READ},
}
"""Who works in a phase, and which kinds of a model's state may stay on the device. All else rests from the phase's
beginning; who works wakes by itself. A phase that is not named here uses no device, or consists of others."""


@dataclass(frozen=True)
class _Stretch:
    """A phase that goes on, or "" for what lies between two."""

    phase: str
    first: bool
    begun: float = field(default_factory=time.monotonic)
    ticks: int = field(default_factory=ticks)
    """that had been when it began"""


@dataclass
class DeviceResidency:
    """Puts to rest who does not work, and notes what each phase takes: seconds, device memory, host memory.

    `models` by name; `generator` once there is one.
    """

    device: torch.device
    models: dict[str, MegatronModel] = field(default_factory=dict)
    generator: Any = None

    def __post_init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._active: list[_Stretch] = []
        self._between = _Stretch("", False)
        """what has gone on since a phase was last left"""
        self._entered = 0
        self._known: set[str] = set()
        self._begin_reading()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A named part of an iteration. Parts may contain others, and count what those take."""
        self._read()
        if name in _WORKERS:
            self._give_way(_WORKERS[name])
        self._begin_reading()
        entered = _Stretch(name, name not in self._known)
        self._active.append(entered)
        self._known.add(name)
        self._entered += 1
        try:
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - entered.begun
            self._read()
            self._begin_reading()
        finally:
            self._between = _Stretch("", False)
            self._active.pop()

    def place(self) -> PhaseProgress:
        """Where this rank is. Any thread may ask."""
        (now,) = self._active[-1:] or [self._between]  # once: the main thread goes on
        return PhaseProgress(self._entered, now.phase, time.monotonic() - now.begun, now.first, ticks() - now.ticks)

    def taken(self) -> dict[str, float]:
        """Timings and memory since this was last asked. No run repeats them exactly.

        Device memory is what the driver counts as used, by vLLM and by other processes too: torch's own count holds
        vLLM's memory to be there while it sleeps. Host memory is this process's resident set, with all that rests
        there.
        """
        self._read()
        self._begin_reading()
        movers = [model.offloader for model in self.models.values()]
        found = {f"seconds/{name}": value for name, value in self._seconds.items()}
        found["seconds/offload"] = sum(mover.seconds for mover in movers)
        found["memory/offloaded_gib"] = sum(mover.bytes for mover in movers) / _GIB
        found |= self._peaks
        for mover in movers:
            mover.seconds, mover.bytes = 0.0, 0
        self._seconds, self._peaks = {}, {}
        return {name: round(value, 3) for name, value in found.items()}

    def _give_way(self, workers: dict[str, frozenset[StateKind]]) -> None:
        """What does not work rests; memory that it leaves goes back to the driver, from which vLLM takes its own."""
        if self.generator is not None and _GENERATOR not in workers:
            self.generator.sleep()
        given = [model.offload(keep=workers.get(name, _NOTHING)) for name, model in self.models.items()]
        if any(given) or _GENERATOR in workers:
            torch.cuda.empty_cache()

    def _begin_reading(self) -> None:
        host_memory.reset_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._used, self._reserved = _device_used(self.device), torch.cuda.memory_reserved(self.device)

    def _read(self) -> None:
        """The most that was used since reading began, noted for the whole and for each phase that goes on."""
        peaks = {"host": host_memory.peak_bytes()}
        if self.device.type == "cuda":
            grown = torch.cuda.max_memory_reserved(self.device) - self._reserved
            peaks["device"] = max(self._used + grown, _device_used(self.device))
        for part in ["", *(f"{active.phase}/" for active in self._active)]:
            for where, peak in peaks.items():
                name = f"memory/{part}{where}_peak_gib"
                self._peaks[name] = max(self._peaks.get(name, 0.0), peak / _GIB)


def _device_used(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free
