"""Clocks whose time passes as a test says, for code that watches other processes."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import psutil


class Clock:
    """Stands in for the module `time`: waiting takes none, and those that work touch their marks meanwhile. How busy
    the machine is then changes nothing."""

    def __init__(self) -> None:
        self.now = 0.0
        self.touched: dict[Path, float] = {}
        """marks, and until when they are"""

    def works(self, mark: Path, until: float = math.inf) -> None:
        self.touched[mark] = until

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for mark, until in self.touched.items():
            if self.now < until:
                os.utime(mark, (self.now, self.now))


class UntilTouched(Clock):
    """Waiting takes as long as another process needs to touch its mark once."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self._mark = mark

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        before = self._mark.stat().st_mtime_ns
        while self._mark.stat().st_mtime_ns == before:
            time.sleep(0.05)


class ProcessorTime:
    """Stands in for the module `time`: the processor time that each of this process's children has had on average, so
    that a limit of theirs runs while they work, and not while the machine does something else."""

    def __init__(self, children: int) -> None:
        self._children = children

    def monotonic(self) -> float:
        ended = os.times()
        living = [child.cpu_times() for child in psutil.Process().children()]
        together = ended.children_user + ended.children_system + sum(child.user + child.system for child in living)
        return together / self._children
