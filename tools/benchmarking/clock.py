"""Time and memory of what runs on all ranks at once."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

_PEAKS = {"H100": 989e12, "H200": 989e12}
"""dense FLOP/s of the bf16 tensor cores (SXM), NVIDIA's data sheets; those of FP8 are twice as many"""


def now() -> float:
    """Seconds, once all that this rank has asked of its device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def slowest(seconds: float) -> float:
    """The longest time of any rank. Collective."""
    if dist.get_world_size() == 1:
        return seconds
    every = [0.0] * dist.get_world_size()
    dist.all_gather_object(every, seconds)
    return max(every)


def timed(work: Callable[[], Any]) -> float:
    """Seconds from when the last rank is ready to when the last one is done. Collective."""
    dist.barrier()
    begun = now()
    work()
    return slowest(now() - begun)


def repeated(work: Callable[[], Any], steps: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of `steps` runs of `work`, after `warm_up` that are not counted. Collective."""
    for _ in range(warm_up):
        work()
    return [timed(work) for _ in range(steps)]


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """The most that torch's tensors took on any rank since `reset_peak`; None on CPUs. Collective."""
    if not torch.cuda.is_available():
        return None
    return round(slowest(torch.cuda.max_memory_allocated() / 2**30), 2)


def grown_gib(work: Callable[[], Any]) -> float | None:
    """The most that torch's tensors took beyond what was there before, on any rank; None on CPUs. Collective."""
    reset_peak()
    before = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    work()
    peak = peak_gib()
    return None if peak is None else round(peak - slowest(before), 2)


def device_peak(fp8: bool) -> float | None:
    """FLOP/s that the device is sold with, where it is known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak * (2 if fp8 else 1) for part, peak in _PEAKS.items() if part in name), None)


@dataclass
class Stopwatch:
    """Seconds spent in methods of objects, by name. `idle` is read before and after each call: what it grew by is time
    that the method spent on something else."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def watching(
        self, watched: object, method: str, name: str, idle: Callable[[], float] = lambda: 0.0
    ) -> Iterator[None]:
        called = getattr(watched, method)

        def call(*given: Any, **named: Any) -> Any:
            begun, idled = now(), idle()
            result = called(*given, **named)
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - begun - (idle() - idled)
            return result

        setattr(watched, method, call)
        try:
            yield
        finally:
            delattr(watched, method)  # the class's own is seen again
