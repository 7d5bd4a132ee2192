"""Requests to stop, by a signal or a deadline. All ranks take one decision."""

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
"""The exit code of a rank that was interrupted and has saved: EX_TEMPFAIL ("try again") of sysexits."""
DEADLINE = "TEMPO_DEADLINE"
"""The environment variable with the time at which the job will be killed, in seconds since the epoch."""
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_STORE_KEY = "tempo/interrupted"
_MIN_LEAD_SECONDS = 60.0
_UNMEASURED_SAVES_SECONDS = 540.0
"""The time for two saves before one was measured. With the minute of `_MIN_LEAD_SECONDS` it equals the warning time
that the batch scripts request from Slurm."""
_received_signals: list[str] = []
"""The signals that came within `catch_stop_signals`. Handlers belong to the process and exist before the run does."""


class Interrupted(Exception):
    """The run was asked to stop and is at a point where it can be saved."""


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Record SIGUSR1 and SIGTERM, which would otherwise end this process. Each `InterruptionRequest` reads the record.

    Call this in the main thread.
    """
    before = {number: signal.signal(number, _record_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received_signals.clear()


def _record_signal(number: int, _: Any) -> None:
    _received_signals.append(signal.Signals(number).name)


class InterruptionRequest:
    """Tells whether the run was asked to stop, by a signal within `catch_stop_signals` or by the deadline.

    A rank that receives a request shares it through the process group's store. For a moment `is_requested` may differ
    between ranks. Decisions that all ranks must take alike use `agree`.
    """

    def __init__(self, store: Any = None, deadline: float | None = None) -> None:
        self._store = store
        self._deadline = deadline
        self._reason = ""
        self._shared = False
        """Whether this rank has written its reason to the store, or has read it there."""
        # A lead longer than the job would have the job requeued again and again without any progress.
        half = (deadline - time.time()) / 2 if deadline is not None else math.inf
        self._max_lead_seconds = max(half, _MIN_LEAD_SECONDS)
        self.set_lead(0.0, 0.0)

    @classmethod
    def of_this_job(cls) -> InterruptionRequest:
        """Return a request with the environment's deadline and the default process group's store."""
        store = dist.distributed_c10d._get_default_store() if rank_and_ranks()[1] > 1 else None
        deadline = os.environ.get(DEADLINE)
        return cls(store, float(deadline) if deadline else None)

    def set_lead(self, save_seconds: float, uninterruptible_seconds: float) -> None:
        """Set how long before the deadline the run stops.

        The lead is twice the last save, one minute, and the longest part of the run that cannot be interrupted. It is
        at most half of the job, and at least a minute. `save_seconds` is 0 before a save was measured.
        """
        lead = (2 * save_seconds or _UNMEASURED_SAVES_SECONDS) + _MIN_LEAD_SECONDS + uninterruptible_seconds
        self.lead_seconds = min(lead, self._max_lead_seconds)

    def is_requested(self) -> bool:
        """Return whether this rank, or one whose request has reached it, was asked to stop. Not collective."""
        if not self._reason and _received_signals:
            self._reason = _received_signals[0]
        if not self._reason and self._deadline is not None and time.time() > self._deadline - self.lead_seconds:
            self._reason = "the deadline"
        if self._store is not None and not self._shared:
            if self._reason:
                self._store.set(_STORE_KEY, self._reason)
            elif self._store.check([_STORE_KEY]):
                self._reason = self._store.get(_STORE_KEY).decode()
            self._shared = bool(self._reason)
        return bool(self._reason)

    def agree(self) -> str:
        """Return why all ranks stop, or "" if no rank was asked to. Collective."""
        requested = self.is_requested()
        if self._store is None:
            return self._reason
        requests = torch.tensor([int(requested)])
        dist.all_reduce(requests)
        if not requests:
            return ""
        self._reason = self._reason or "another rank's request"
        return self._reason
