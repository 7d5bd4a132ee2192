"""Counts the units of work that this process has done, and says how the watchdog may judge that count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple


class Pace(StrEnum):
    """How the watchdog may judge a tick count that stands still."""

    shared = "shared"
    """The count may stand still while this rank waits for other ranks. The count of at least one rank moves."""
    independent = "independent"
    """The count moves. This rank waits for no other rank, except for those that do the same work in step with it."""
    untimed = "untimed"
    """The count may stand still for an unknown time, as in file access or an engine's start: nothing can tick there."""


class PhaseProgress(NamedTuple):
    """Where this process is in the run."""

    phases_entered: int
    """The number of phases entered so far."""
    phase: str
    """The innermost active phase, or "" between phases."""
    seconds: float
    """The seconds since this phase was entered, or since the last phase was left."""
    first_time: bool
    """Whether this process is in that phase for the first time."""
    ticks: int
    """The ticks since the phase was entered."""


_ticks = 0
_pace = Pace.shared


def tick() -> None:
    """Count one unit of work, which takes seconds at most.

    Call this in the thread that does the work: ticks of another thread would hide that the work hangs.
    """
    global _ticks
    _ticks += 1


def ticks() -> int:
    """Return the ticks since this process started."""
    return _ticks


def pace() -> Pace:
    """Return the pace that is expected of the main thread now."""
    return _pace


@contextlib.contextmanager
def expect_pace(expected: Pace) -> Iterator[None]:
    """Set the pace that is expected of the main thread within this context. Also works as a decorator."""
    global _pace
    before, _pace = _pace, expected
    try:
        yield
    finally:
        _pace = before
