"""Asked to stop, by a signal or a deadline: one decision for all ranks."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from tempo_megatron.utils.distributed import rank_and_ranks

EXIT_CODE = 75
"""of a rank that was interrupted and saved what there was: sysexits' "try again"."""
DEADLINE = "TEMPO_DEADLINE"
"""environment variable: seconds since the epoch at which the job will be killed"""
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_KEY = "tempo/interrupted"
_LEAST_LEAD_SECONDS = 60.0
_UNMEASURED_SAVES_SECONDS = 540.0
"""of two saves, before one was measured: with the minute above, the warning that Slurm is asked for"""
_heard: list[str] = []
"""signals that this process had while it was `listening`: handlers are a process's own, and are there before a run"""


class Interrupted(Exception):
    """The run was asked to stop and stands where it can be saved."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """SIGUSR1 and SIGTERM are noted rather than obeyed, for each `Interruption` of this process. Main thread alone."""
    before = {number: signal.signal(number, _note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard.clear()


def _note(number: int, _: Any) -> None:
    _heard.append(signal.Signals(number).name)


class InterruptionRequest:
    """Knows the signals that were heard while `listening`, and the deadline.

    A rank that hears anything tells the others through the process group's store. `asked` may differ between ranks for
    a moment; what all must do alike asks `agreed`.
    """

    def __init__(self, store: Any = None, deadline: float | None = None) -> None:
        self._store = store
        self._deadline = deadline
        self._reason = ""
        self._told = False
        # A job is to do something, too: one that is shorter than its lead would only ever be requeued.
        half = (deadline - time.time()) / 2 if deadline is not None else math.inf
        self._most_seconds = max(half, _LEAST_LEAD_SECONDS)
        self.allow(0.0, 0.0)

    @classmethod
    def of_this_job(cls) -> InterruptionRequest:
        """With the deadline of the environment and the default process group's store."""
        store = dist.distributed_c10d._get_default_store() if rank_and_ranks()[1] > 1 else None
        given = os.environ.get(DEADLINE)
        return cls(store, float(given) if given else None)

    def allow(self, save_seconds: float, stretch_seconds: float) -> None:
        """What must fit between the request and the end: a save that takes twice as long as the last one (0: none was
        measured yet), a minute, and the longest stretch of a run in which it cannot be saved; at most half the job."""
        needed = (2 * save_seconds or _UNMEASURED_SAVES_SECONDS) + _LEAST_LEAD_SECONDS + stretch_seconds
        self.lead_seconds = min(needed, self._most_seconds)

    def asked(self) -> bool:
        """Whether this rank, or one that has told it, was asked to stop. Not collective."""
        if not self._reason and _heard:
            self._reason = _heard[0]
        if not self._reason and self._deadline is not None and time.time() > self._deadline - self.lead_seconds:
            self._reason = "the deadline"
        if self._store is not None and not self._told:
            if self._reason:
                self._store.set(_KEY, self._reason)
            elif self._store.check([_KEY]):
                self._reason = self._store.get(_KEY).decode()
            self._told = bool(self._reason)
        return bool(self._reason)

    def agreed(self) -> str:
        """Why all ranks stop, "" if none was asked. Collective."""
        asked = self.asked()
        if self._store is None:
            return self._reason
        flag = torch.tensor([int(asked)])
        dist.all_reduce(flag)
        if not flag:
            return ""
        self._reason = self._reason or "another rank's request"
        return self._reason
