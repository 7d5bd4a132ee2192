"""Ends a run in which a rank hangs, and reports which rank and where."""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tempo_megatron.config import FaultsConfig
from tempo_megatron.supervision import collectives, failure
from tempo_megatron.supervision.hangs import HangDetector, Heartbeat, RankState
from tempo_megatron.utils import heartbeat
from tempo_megatron.utils.distributed import rank_and_ranks
from tempo_megatron.utils.heartbeat import Pace, PhaseProgress
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

EXIT_CODE = 70
"""The exit code of a rank that ends because it, or another rank, hangs: EX_SOFTWARE ("internal error") of sysexits."""
_POLL_SECONDS = 2.0
_POLLS_BEFORE_RECORD = 5
"""The polls with an unchanged tick count before the watchdog reads torch's record of collectives. Reading it blocks the
interpreter for tens of milliseconds."""
_GRACE_SECONDS = 20.0
"""The time for a main thread to end by itself after another rank is gone."""
_CULPRIT_FIRST_SECONDS = 5.0
"""The time by which other ranks delay their report, so that the hanging rank's report comes first in the log."""


class Watchdog:
    """Runs two threads on each rank that end the run when a rank hangs.

    - One thread watches this rank's own phase, which may take no longer than its limit. It needs no other rank.
    - One thread sends heartbeats through the store and reads the other ranks' reports. The first rank's thread also
      applies the rules of `hangs`. This thread may wait forever for a store that does not answer.

    A hanging rank writes its stacks and torch's record of the last collectives to `directory/rank-K.txt`. The stacks go
    to standard error too. All ranks end with `EXIT_CODE`. Tests replace `end` and `store`.
    """

    def __init__(
        self,
        progress: Callable[[], PhaseProgress],
        limits: FaultsConfig,
        directory: Path,
        store: Any = None,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self._progress = progress
        self._limits = limits
        self._directory = directory
        self._store = store
        self._end = end
        self._rank, self._ranks = rank_and_ranks()
        self._detector = HangDetector(limits.lag_limit_seconds)
        self._last_count: tuple[int, int] | None = None
        """The phases entered and the ticks at the last heartbeat."""
        self._unchanged_polls = 0
        """The heartbeats since this count last changed."""
        self._heartbeats_sent = 0
        self._phase_time, self._shared_time = _WatchedTime(), _WatchedTime()
        self._stopping = threading.Event()
        checks = [self.check_phase, *([self.check_ranks] if store is not None else [])]
        self._threads = [threading.Thread(target=self._repeat, args=[check], daemon=True) for check in checks]

    @classmethod
    def of_this_job(cls, progress: Callable[[], PhaseProgress], limits: FaultsConfig, directory: Path) -> Watchdog:
        """Return a watchdog that uses the default process group's store."""
        default_store: Any = dist.distributed_c10d._get_default_store() if rank_and_ranks()[1] > 1 else None
        # A connection of its own: the main thread may hold the default one while it waits.
        store = default_store and default_store.clone()
        return cls(progress, limits, directory, store)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, check: Callable[[], None]) -> None:
        last_error = ""
        while not self._stopping.wait(_POLL_SECONDS):
            try:
                check()
            except dist.DistError:
                if not self._stopping.wait(_GRACE_SECONDS):
                    self._say("has lost the rank that held the process group's store")
                    self._end(EXIT_CODE)
                return
            except Exception as error:  # the next check may still detect a hang
                text = f"could not look for hangs: {error!r}"
                if text != last_error:
                    self._say(text)
                last_error = text

    def check_phase(self) -> None:
        """End the process if its present phase has exceeded its limit."""
        self._phase_time.update()
        progress = self._progress()
        limit = self._limits.limit_seconds(progress.phase)
        seconds = progress.seconds - self._phase_time.suspended_seconds(progress.seconds)
        if seconds > limit:
            if collectives.main_thread_waits() or collectives.collective_in_flight():
                time.sleep(_CULPRIT_FIRST_SECONDS)
            self._end_hanging_rank(f"{_phase_name(progress)} has taken {seconds:.0f} s, the limit is {limit:.0f} s")

    def check_ranks(self) -> None:
        """Send a heartbeat and read the other ranks' reports. End the process if a rank hangs or has failed."""
        progress = self._progress()
        self._store.set(_heartbeat_key(self._rank), str(self._heartbeat(progress)))
        if self._rank == 0:
            self._detect_hangs()
        if self._store.check([failure.FAILED_KEY]):
            first = self._store.get(failure.FAILED_KEY).decode()
            if not self._stopping.wait(_GRACE_SECONDS) and first != str(self._rank):
                self._say(f"ends because rank {first} failed")  # its main thread may wait in a collective forever
                self._end(failure.EXIT_CODE)
        if self._store.check([failure.HUNG_KEY]):
            ranks, reason = self._store.get(failure.HUNG_KEY).decode().split(": ", 1)
            self._end_after_hang(ranks.split(), f"in {_phase_name(progress)}, {reason}")

    def _heartbeat(self, progress: PhaseProgress) -> Heartbeat:
        count = (progress.phases_entered, progress.ticks)
        self._unchanged_polls = self._unchanged_polls + 1 if self._last_count == count else 0
        self._last_count = count
        limits = self._limits
        patience = limits.first_stall_limit_seconds if progress.first_time else limits.stall_limit_seconds
        self._heartbeats_sent += 1
        return Heartbeat(*count, self._state(progress), patience, self._heartbeats_sent)

    def _state(self, progress: PhaseProgress) -> RankState:
        if heartbeat.pace() is Pace.untimed:
            return RankState.untimed
        if heartbeat.pace() is Pace.independent:
            return RankState.independent
        if self._unchanged_polls and collectives.main_thread_waits():
            return RankState.waiting
        if not progress.phase:
            return RankState.between_phases
        waits = self._unchanged_polls >= _POLLS_BEFORE_RECORD and collectives.collective_in_flight()
        return RankState.waiting if waits else RankState.working

    def _detect_hangs(self) -> None:
        # After a suspension, this rank may wake before the others have sent a heartbeat: `_shared_time` leaves it out.
        self._shared_time.update()
        keys = [_heartbeat_key(rank) for rank in range(self._ranks)]
        if self._store.check(keys):
            heartbeats = [Heartbeat.parse(text.decode()) for text in self._store.multi_get(keys)]
            hang = self._detector.detect(heartbeats, self._shared_time.seconds)
            if hang:
                self._store.set(failure.HUNG_KEY, f"{' '.join(map(str, hang.ranks))}: {hang.reason}")

    def _end_after_hang(self, ranks: list[str], reason: str) -> None:
        """End this rank after `ranks` were detected to hang, the likeliest culprit first.

        The first of `ranks` reports first, then the others of `ranks`, then the ranks that only wait. No hanging rank
        ends before all hanging ranks have reported, because launchers kill the ranks that are left.
        """
        own_rank = str(self._rank)
        if own_rank == ranks[0]:
            self._end_hanging_rank(reason, linger=2 * _CULPRIT_FIRST_SECONDS if ranks[1:] else 0.0)
        time.sleep(_CULPRIT_FIRST_SECONDS)
        if own_rank in ranks:
            self._end_hanging_rank(reason, linger=_CULPRIT_FIRST_SECONDS)
        time.sleep(_CULPRIT_FIRST_SECONDS)
        self._say(f"ends because rank {', '.join(ranks)} hangs")
        self._end(EXIT_CODE)

    def _end_hanging_rank(self, reason: str, linger: float = 0.0) -> None:
        """Log the reason and all stacks, wait `linger` seconds, and end the process."""
        # The cause may be a file system or a log that does not answer: the timer ends the process all the same.
        end_timer = threading.Timer(_GRACE_SECONDS, self._end, [EXIT_CODE])
        end_timer.daemon = True
        end_timer.start()
        try:
            self._say(f"hangs: {reason}. Stacks of its threads:")
            faulthandler.dump_traceback(all_threads=True)
            self._write_record(reason)
            time.sleep(linger)
        finally:
            end_timer.cancel()
            self._end(EXIT_CODE)

    def _write_record(self, reason: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f"rank-{self._rank}.txt").open("w") as file:
            print(f"rank {self._rank} on {socket.gethostname()}: {reason}\n", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
            print(f"\nlast collectives:\n{collectives.flight_record()}", file=file)

    def _say(self, text: str) -> None:
        logger.error(f"rank {self._rank} on {socket.gethostname()} {text}")


class _WatchedTime:
    """The time that a polling thread has watched. It leaves out suspensions, such as Slurm's, that stop the thread."""

    def __init__(self) -> None:
        self._last_update = time.monotonic()
        self._suspensions: list[tuple[float, float]] = []
        """The end of each suspension, and its seconds."""
        self.seconds = 0.0

    def update(self) -> None:
        """Count the time since the last update, of which all but two poll intervals is a suspension."""
        now = time.monotonic()
        elapsed, longest_usual = now - self._last_update, 2 * _POLL_SECONDS
        self.seconds += min(elapsed, longest_usual)
        if elapsed > longest_usual:
            self._suspensions.append((now, elapsed - longest_usual))
        self._last_update = now

    def suspended_seconds(self, period: float) -> float:
        """Return how many of the last `period` seconds the thread was suspended."""
        begin = self._last_update - period
        return sum(seconds for end, seconds in self._suspensions if end > begin)


def _phase_name(progress: PhaseProgress) -> str:
    return progress.phase or "what follows a phase"


def _heartbeat_key(rank: int) -> str:
    return f"tempo/heartbeat/{rank}"
