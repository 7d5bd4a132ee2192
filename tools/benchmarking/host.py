"""Section host: what the processor does during a step, in torch's operations and in Python, and when it waits."""

from __future__ import annotations

import cProfile
import gc
import pstats
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarking import clock
from benchmarking.kernels import merge_intervals, total_length
from benchmarking.report import Figures

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_LARGEST = 15
"""The number of operations and of functions that are listed."""


@dataclass(frozen=True)
class Operation:
    """A call of an operation, of CUDA's runtime, or a copy of the device to pageable host memory. Times in us."""

    name: str
    begin: float
    end: float
    own: float
    """The time outside the operations that it calls."""

    @property
    def waits(self) -> bool:
        return self.name in _WAITS or "Pageable" in self.name


def measure(work: Callable[[], Any]) -> Figures:
    """What each rank's processor does in `work`, after two untimed runs. Two profilers have a run each. Collective."""
    for _ in range(2):
        work()
    dist.barrier()
    figures = profile_operations(work)
    dist.barrier()
    figures |= profile_functions(work)
    rank_figures: list[Figures] = [{}] * dist.get_world_size()
    dist.all_gather_object(rank_figures, figures)
    return {f"rank {rank}": figures for rank, figures in enumerate(rank_figures)}


def profile_operations(work: Callable[[], Any]) -> Figures:
    """The operations of all threads in `work`, and the garbage collections. The profiler's own time counts too."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]  # The latter has the waits.
    with profile(activities=activities) as profiler, _collections() as collections:
        start = clock.now()
        work()
        seconds = clock.now() - start
    events = [event for event in profiler.events() or () if not event.is_async]
    host = [event for event in events if event.device_type == DeviceType.CPU or "Pageable" in event.name]
    operations = [Operation(e.name, e.time_range.start, e.time_range.end, e.self_cpu_time_total) for e in host]
    collecting = {"garbage collections": len(collections), "ms collecting garbage": sum(collections) * 1e3}
    return operation_summary(operations, seconds) | collecting


def operation_summary(operations: Sequence[Operation], seconds: float) -> Figures:
    """Figures of one rank. Outside operations Python runs, or nothing does."""
    inside = total_length(merge_intervals((o.begin, o.end) for o in operations)) / 1e3
    waits = [o for o in operations if o.waits]
    own, calls = Counter[str](), Counter[str]()
    for operation in operations:
        own[operation.name[:72]] += operation.own
        calls[operation.name[:72]] += 1
    return {
        "ms": seconds * 1e3,
        "operations": len(operations),
        "ms inside operations": inside,
        "ms outside": seconds * 1e3 - inside,
        "waits for the device": len(waits),
        "ms waiting for the device": sum(o.end - o.begin for o in waits) / 1e3,
        "own ms and calls by operation": {name: [us / 1e3, calls[name]] for name, us in own.most_common(_LARGEST)},
    }


def profile_functions(work: Callable[[], Any]) -> Figures:
    """The Python functions with the largest own time, with ms and calls. Backward passes run in the main thread."""
    profiler = cProfile.Profile()
    with torch.autograd.set_multithreading_enabled(False):
        profiler.runcall(work)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    largest = sorted(stats.items(), key=lambda item: -item[1][2])[:_LARGEST]
    figures = {_short(*key): [own * 1e3, calls] for key, (_, calls, own, *_) in largest}
    return {"own ms and calls by function": figures}


def _short(file: str, line: int, function: str) -> str:
    """file:line(function), with the path inside its package; built-in functions have no file."""
    parts = Path(file).parts
    kept = parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else parts[-4:]
    return function if file == "~" else f"{'/'.join(kept)}:{line}({function})"


@contextmanager
def _collections() -> Iterator[list[float]]:
    """Yields the seconds of each garbage collection in the block."""
    durations: list[float] = []
    begins: list[float] = []

    def watch(phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            begins.append(time.perf_counter())
        elif begins:
            durations.append(time.perf_counter() - begins.pop())

    gc.callbacks.append(watch)
    try:
        yield durations
    finally:
        gc.callbacks.remove(watch)
