"""How far this process has come: a count that its work moves, and what a watcher may expect of it meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple


class Pace(StrEnum):
    """What may be expected of the count."""

    shared = "shared"
    """it rests while this rank waits for others, as it may at any time; one rank's moves"""
    own = "own"
    """it moves: nothing here waits for another rank, save those that work on the same thing in step"""
    untimed = "untimed"
    """nothing: a step of unknown length is under way, in which nothing can count (a file system, an engine's start)"""


class PhaseProgress(NamedTuple):
    """Where a run is."""

    entered: int
    """phases entered so far"""
    phase: str
    """the innermost that goes on, "" between phases"""
    seconds: float
    """since it was entered, or the last one left"""
    first: bool
    """this process is in that phase for the first time"""
    ticks: int
    """since the phase was entered"""


_ticks = 0
_pace = Pace.shared


def tick() -> None:
    """A unit of work is done, one that takes seconds at most. For the thread that does the work: one that ticked beside
    it would hide that it hangs."""
    global _ticks
    _ticks += 1


def ticks() -> int:
    return _ticks


def pace() -> Pace:
    return _pace


@contextlib.contextmanager
def expect_pace(changed: Pace) -> Iterator[None]:
    """What the main thread does within goes at this pace. Also a decorator."""
    global _pace
    before, _pace = _pace, changed
    try:
        yield
    finally:
        _pace = before
