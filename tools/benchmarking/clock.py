"""Measures time and memory of work that runs on all ranks at once."""

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
"""Dense FLOP/s of the bf16 tensor cores (SXM) in NVIDIA's data sheets; FP8 has twice as many."""


def now() -> float:
    """Seconds on a monotonic clock, after this rank's device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def slowest(seconds: float) -> float:
    """The largest value of any rank. Collective."""
    if dist.get_world_size() == 1:
        return seconds
    seconds_by_rank = [0.0] * dist.get_world_size()
    dist.all_gather_object(seconds_by_rank, seconds)
    return max(seconds_by_rank)


def timed(work: Callable[[], Any]) -> float:
    """Seconds from when the last rank is ready until the last one has finished. Collective."""
    dist.barrier()
    start = now()
    work()
    return slowest(now() - start)


def repeated(work: Callable[[], Any], steps: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of `steps` runs of `work`, after `warm_up` untimed runs. Collective."""
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
    """Peak GiB of torch's tensors on any rank since `reset_peak`; None on CPUs. Collective."""
    if not torch.cuda.is_available():
        return None
    return round(slowest(torch.cuda.max_memory_allocated() / 2**30), 2)


def grown_gib(work: Callable[[], Any]) -> float | None:
    """Peak GiB that `work` adds to torch's tensors, on any rank; None on CPUs. Collective."""
    reset_peak()
    before = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    work()
    peak = peak_gib()
    return None if peak is None else round(peak - slowest(before), 2)


def device_peak(fp8: bool) -> float | None:
    """FLOP/s of the device's data sheet; None for a device without an entry."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak * (2 if fp8 else 1) for part, peak in _PEAKS.items() if part in name), None)


@dataclass
class Stopwatch:
    """Adds up the seconds spent in methods of objects, by name.

    `idle` returns seconds that the method spends on something else; its growth during a call is subtracted.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def watching(
        self, owner: object, method: str, name: str, idle: Callable[[], float] = lambda: 0.0
    ) -> Iterator[None]:
        original = getattr(owner, method)

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            start, idle_at_start = now(), idle()
            result = original(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - start - (idle() - idle_at_start)
            return result

        setattr(owner, method, timed_call)
        try:
            yield
        finally:
            delattr(owner, method)  # the class's method is visible again
