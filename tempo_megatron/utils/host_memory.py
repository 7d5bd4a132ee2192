"""Host memory: how much there is for this process, and the most that it has taken."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self")


def total_and_free(cgroups: Path = _CGROUPS, process: Path = _PROCESS) -> tuple[int, int]:
    """Bytes of the node, or of the part of it that a container or a Slurm job leaves to this process (cgroup v1 and
    v2; the limit of a group holds for those within it)."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit, used in _limits(cgroups, process):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _limits(cgroups: Path, process: Path) -> list[tuple[int, int]]:
    """Limit and use in bytes of this process's memory groups, from its own to the outermost that it sees. Files that
    the kernel would drop are not in use: a checkpoint that was just written is many."""
    table = process / "cgroup"
    found = []
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            top, limit_name, use_name = cgroups, "memory.max", "memory.current"
        elif controllers == "memory":
            top, limit_name, use_name = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / own.strip("/")
        for directory in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            limit, used = directory / limit_name, directory / use_name
            if limit.is_file() and used.is_file() and (given := limit.read_text().strip()).isdigit():
                found.append((int(given), int(used.read_text()) - _inactive_files(directory / "memory.stat")))
    return found


def _inactive_files(statistics: Path) -> int:
    """Bytes; of those within a group too, which cgroup v1 counts apart."""
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    figures = {name: int(value) for name, value in map(str.split, lines)}
    return figures.get("total_inactive_file", figures.get("inactive_file", 0))


def forget_peak() -> None:
    """`peak` counts from here on; where the kernel does not allow it, from the process's start."""
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def peak() -> int:
    """Bytes of this process's largest resident set since `forget_peak`, pinned memory in it."""
    lines = (_PROCESS / "status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found) * 1024
