"""Section kernels: what the device does during a step, and which communication has nothing beside it."""

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
"""names that are listed with their time"""


@dataclass(frozen=True)
class Kernel:
    """One kernel or copy; on CPUs, an operator that calls no other. Times in microseconds."""

    name: str
    begin: float
    end: float

    @property
    def kind(self) -> str:
        lower = self.name.lower()
        return next((kind for kind, parts in _KINDS if any(part in lower for part in parts)), "other")


def measure(work: Callable[[], Any]) -> Figures:
    """Milliseconds of `work`, which is run twice before, rank by rank. Collective."""
    for _ in range(2):
        work()
    dist.barrier()
    clock.now()
    mine = profiled(work)
    every: list[list[Kernel]] = [[]] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    transfers = transferring([[k for k in kernels if k.kind == _COMMUNICATION] for kernels in every])
    return {
        f"rank {rank}": described(kernels) | {"ms communicating, less waiting for other ranks": transfers / 1e3}
        for rank, kernels in enumerate(every)
    }


def profiled(work: Callable[[], Any]) -> list[Kernel]:
    """What this rank's device runs during `work`, by its begin."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        work()
        clock.now()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = [event for event in profiler.events() or () if event.device_type == wanted and not event.cpu_children]
    return sorted((Kernel(e.name, e.time_range.start, e.time_range.end) for e in found), key=lambda k: k.begin)


def described(kernels: Sequence[Kernel]) -> Figures:
    """Milliseconds of one rank: from the first kernel's begin to the last one's end; with none running (the host is
    late, or waits); communicating; communicating with nothing else running; and of each kind and name of kernel."""
    busy = union((k.begin, k.end) for k in kernels)
    communication = union((k.begin, k.end) for k in kernels if k.kind == _COMMUNICATION)
    computation = union((k.begin, k.end) for k in kernels if k.kind != _COMMUNICATION)
    kinds, names = Counter[str](), Counter[str]()
    for kernel in kernels:
        kinds[kernel.kind] += kernel.end - kernel.begin
        names[kernel.name[:72]] += kernel.end - kernel.begin
    span = max(k.end for k in kernels) - min(k.begin for k in kernels)
    return {
        "kernels": len(kernels),
        "ms": span / 1e3,
        "ms with none running": (span - length(busy)) / 1e3,
        "ms communicating": length(communication) / 1e3,
        "ms communicating, nothing beside it": (length(busy) - length(computation)) / 1e3,
        "ms by kind": {kind: time / 1e3 for kind, time in kinds.most_common()},
        "ms by name": {name: time / 1e3 for name, time in names.most_common(_LONGEST)},
    }


def union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same points in intervals that do not touch, in order."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def length(intervals: Iterable[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in intervals)


def transferring(ranks: Sequence[Sequence[Kernel]]) -> float:
    """Microseconds of collectives once every rank has come: a kernel also waits for the others', so that of the n-th
    one of a name the shortest on any rank counts. Names that ranks do not have equally often count as they are on the
    first rank."""
    times: list[dict[str, list[float]]] = []
    for kernels in ranks:
        mine: dict[str, list[float]] = {}
        for kernel in kernels:
            mine.setdefault(kernel.name, []).append(kernel.end - kernel.begin)
        times.append(mine)
    total = 0.0
    for name, first in times[0].items():
        same = [mine.get(name, []) for mine in times]
        equal = all(len(found) == len(first) for found in same)
        total += sum(map(min, zip(*same, strict=True))) if equal else sum(first)
    return total
