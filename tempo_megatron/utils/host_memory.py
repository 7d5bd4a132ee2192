"""Host memory that this process may use, and the peak of what it has used."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self")


def total_and_free(cgroups: Path = _CGROUPS, process: Path = _PROCESS) -> tuple[int, int]:
    """Return the total and the free bytes of host memory that this process may use.

    These are the node's, limited by the container and by the Slurm job. cgroup v1 and v2 are read. A group's limit
    also holds for all groups within it.
    """
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit, used in _limits(cgroups, process):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _limits(cgroups: Path, process: Path) -> list[tuple[int, int]]:
    """Return limit and use in bytes of this process's memory groups, from its own to the outermost visible one.

    Cached files that the kernel can drop do not count as used: a checkpoint that was just written has many.
    """
    table = process / "cgroup"
    limits = []
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, own_group = line.split(":", 2)
        if controllers == "":
            top, limit_name, use_name = cgroups, "memory.max", "memory.current"
        elif controllers == "memory":
            top, limit_name, use_name = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / own_group.strip("/")
        for directory in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            limit_file, use_file = directory / limit_name, directory / use_name
            if limit_file.is_file() and use_file.is_file() and (limit := limit_file.read_text().strip()).isdigit():
                used = int(use_file.read_text()) - _inactive_file_bytes(directory / "memory.stat")
                limits.append((int(limit), used))
    return limits


def _inactive_file_bytes(statistics: Path) -> int:
    """Return the bytes of inactive cached files, including those of inner groups, which cgroup v1 lists separately."""
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    values = {name: int(value) for name, value in map(str.split, lines)}
    return values.get("total_inactive_file", values.get("inactive_file", 0))


def reset_peak() -> None:
    """Let `peak_bytes` count from now on. If the kernel does not allow this, it counts from the process's start."""
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the bytes of this process's largest resident set since `reset_peak`, including pinned memory."""
    lines = (_PROCESS / "status").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes) * 1024
