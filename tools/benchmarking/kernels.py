"""Section kernels: what the device runs during a step, and which communication overlaps with no computation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarking import clock
from benchmarking.report import Figures

_COMMUNICATION = "communication"
_KINDS = (
    (_COMMUNICATION, ("nccl", "gloo", "c10d")),
    ("attention", ("sdpa", "fmha", "flash", "attention")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "::mm", "addmm", "bmm")),
    ("copies", ("memcpy", "memset", "copy_")),
)
_LONGEST = 12
"""The number of kernel names that are listed with their time."""


@dataclass(frozen=True)
class Kernel:
    """One kernel or copy; on CPUs, an operator that calls no other one. Times are in microseconds."""

    name: str
    begin: float
    end: float

    @property
    def kind(self) -> str:
        lower = self.name.lower()
        return next((kind for kind, parts in _KINDS if any(part in lower for part in parts)), "other")


def measure(work: Callable[[], Any]) -> Figures:
    """Milliseconds of `work` on each rank, after two untimed runs. Collective."""
    for _ in range(2):
        work()
    dist.barrier()
    clock.now()
    rank_kernels: list[list[Kernel]] = [[]] * dist.get_world_size()
    dist.all_gather_object(rank_kernels, profile_kernels(work))
    transfers = transfer_time([[k for k in kernels if k.kind == _COMMUNICATION] for kernels in rank_kernels])
    return {
        f"rank {rank}": kernel_summary(kernels) | {"ms communicating, less waiting for other ranks": transfers / 1e3}
        for rank, kernels in enumerate(rank_kernels)
    }


def profile_kernels(work: Callable[[], Any]) -> list[Kernel]:
    """The kernels that this rank's device runs during `work`, in the order in which they begin."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        work()
        clock.now()
    device_type = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.events() or () if event.device_type == device_type and not event.cpu_children]
    return sorted((Kernel(e.name, e.time_range.start, e.time_range.end) for e in events), key=lambda k: k.begin)


def kernel_summary(kernels: Sequence[Kernel]) -> Figures:
    """Milliseconds of one rank, in all and by kind and name of kernel.

    The span is from the first kernel's begin to the last one's end. While no kernel runs, the host is late or waits.
    """
    busy = merge_intervals((k.begin, k.end) for k in kernels)
    communication = merge_intervals((k.begin, k.end) for k in kernels if k.kind == _COMMUNICATION)
    computation = merge_intervals((k.begin, k.end) for k in kernels if k.kind != _COMMUNICATION)
    kinds, names = Counter[str](), Counter[str]()
    for kernel in kernels:
        kinds[kernel.kind] += kernel.end - kernel.begin
        names[kernel.name[:72]] += kernel.end - kernel.begin
    span = max(k.end for k in kernels) - min(k.begin for k in kernels)
    return {
        "kernels": len(kernels),
        "ms": span / 1e3,
        "ms with none running": (span - total_length(busy)) / 1e3,
        "ms communicating": total_length(communication) / 1e3,
        "ms communicating, nothing beside it": (total_length(busy) - total_length(computation)) / 1e3,
        "ms by kind": {kind: time / 1e3 for kind, time in kinds.most_common()},
        "ms by name": {name: time / 1e3 for name, time in names.most_common(_LONGEST)},
    }


def merge_intervals(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of the intervals, as intervals that do not touch, in order."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def total_length(intervals: Iterable[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in intervals)


def transfer_time(ranks: Sequence[Sequence[Kernel]]) -> float:
    """Microseconds that collectives need once every rank has arrived.

    A collective's kernel also waits for the other ranks. Of the n-th kernel of a name, the shortest on any rank
    therefore counts. If ranks run a name unequally often, the first rank's times count.
    """
    times: list[dict[str, list[float]]] = []
    for kernels in ranks:
        times_by_name: dict[str, list[float]] = {}
        for kernel in kernels:
            times_by_name.setdefault(kernel.name, []).append(kernel.end - kernel.begin)
        times.append(times_by_name)
    total = 0.0
    for name, first in times[0].items():
        by_rank = [times_by_name.get(name, []) for times_by_name in times]
        equal = all(len(rank_times) == len(first) for rank_times in by_rank)
        total += sum(map(min, zip(*by_rank, strict=True))) if equal else sum(first)
    return total
