"""When generation asks whether it shall stop: every few seconds, and at the same engine step on all of a replica."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS = 2.0
"""between two questions, so that a request to stop is heard soon"""
_MOST_STEPS = 16
"""between two questions where steps are fast: those that follow may not be"""

Broadcast = Callable[[list[int]], list[int]]
"""gives the first tensor rank's numbers to all of a replica's"""


class StopPoll:
    """`should_stop`, asked on the first tensor rank before some of a replica's engine steps.

    The engines of a replica run in step, and their clocks differ: each answer comes with the number of steps until the
    next question. Those fit between two questions even if each takes as long as the longest that the first rank has
    seen, which is one that computes prompts; they are at most twice as many as the last time, since asynchronous
    scheduling shows a step's time a step later.
    """

    def __init__(self, should_stop: Callable[[], bool], share: Broadcast) -> None:
        self._should_stop, self._share = should_stop, share
        self._steps = self._left = 0
        self._longest = 0.0
        self._last_step: float | None = None

    def answer(self) -> bool:
        """Whether to stop rather than make the step that is to come. Every rank of a replica asks before every step."""
        now = time.monotonic()
        if self._last_step is not None:
            self._longest = max(self._longest, now - self._last_step)
        self._last_step = now
        self._left -= 1
        if self._left > 0:
            return False
        fit = int(_SECONDS / self._longest) if self._longest else 1
        # Every rank is asked, for one that heard a signal tells the others by that.
        asked = [int(self._should_stop()), max(1, min(fit, 2 * self._steps, _MOST_STEPS))]
        stop, self._steps = self._share(asked)
        self._left = self._steps
        return bool(stop)
