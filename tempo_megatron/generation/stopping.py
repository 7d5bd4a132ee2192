"""Polls whether generation must stop, every few seconds and at the same engine step on all ranks of a replica."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS = 2.0
"""The most seconds between two polls, so that generation stops soon after a request."""
_MAX_STEPS = 16
"""The most engine steps between two polls. Steps that are fast now may be slow later."""

Broadcast = Callable[[list[int]], list[int]]
"""Returns the numbers of the first tensor-parallel rank on all ranks of a replica."""


class StopPoll:
    """Polls `should_stop` before some of a replica's engine steps. The first tensor-parallel rank decides for all.

    The engines of a replica run in lockstep, but the clocks of their ranks differ. So each poll broadcasts the number
    of steps until the next one too. These steps take at most `_SECONDS` even if each is as long as the longest step
    that the first rank has measured, which is one with prefill. Their number at most doubles from poll to poll, because
    asynchronous scheduling shows the duration of a step one step late.
    """

    def __init__(self, should_stop: Callable[[], bool], broadcast: Broadcast) -> None:
        self._should_stop, self._broadcast = should_stop, broadcast
        self._steps = self._steps_left = 0
        self._longest = 0.0
        self._last_step: float | None = None

    def must_stop(self) -> bool:
        """Returns whether to stop before the next engine step. Every rank of a replica calls it before every step."""
        now = time.monotonic()
        if self._last_step is not None:
            self._longest = max(self._longest, now - self._last_step)
        self._last_step = now
        self._steps_left -= 1
        if self._steps_left > 0:
            return False
        steps_in_time = int(_SECONDS / self._longest) if self._longest else 1
        # Every rank calls should_stop, because a rank that received a signal notifies the others in it.
        local = [int(self._should_stop()), max(1, min(steps_in_time, 2 * self._steps, _MAX_STEPS))]
        stop, self._steps = self._broadcast(local)
        self._steps_left = self._steps
        return bool(stop)
