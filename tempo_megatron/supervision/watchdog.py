"""Ends a run in which a rank hangs, and says which and where."""

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
from tempo_megatron.supervision.hangs import Beat, Hangs, RankState
from tempo_megatron.utils import heartbeat
from tempo_megatron.utils.distributed import rank_and_ranks
from tempo_megatron.utils.heartbeat import Pace, PhaseProgress
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

EXIT_CODE = 70
"""of a rank that ends itself because it, or another, hangs: sysexits' "internal error"."""
_POLL_SECONDS = 2.0
_LOOKS_BEFORE_RECORD = 5
"""at a count that rests, before torch's record of collectives is read: that takes tens of ms of the interpreter"""
_ALONE_SECONDS = 20.0
"""for a main thread to notice by itself that another rank is gone"""
_OTHERS_WAIT_SECONDS = 5.0
"""so that what the hanging rank says comes first in the log"""


class Watchdog:
    """Threads of each rank. One looks at where the main thread is: a phase may take no longer than its limit. Another
    tells the other ranks and hears what they tell: `hangs` has the rules by which the first rank finds one that hangs.
    The latter may wait for ever for a store that does not answer; the former asks nobody.

    What hangs leaves its stacks, and the record of the last collectives, in `directory/rank-K.txt`, and the stacks on
    standard error;
    all ranks end with `EXIT_CODE`. `end` and `store` are replaced in tests.
    """

    def __init__(
        self,
        place: Callable[[], PhaseProgress],
        limits: FaultsConfig,
        directory: Path,
        store: Any = None,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self._place = place
        self._limits = limits
        self._directory = directory
        self._store = store
        self._end = end
        self._rank, self._ranks = rank_and_ranks()
        self._hangs = Hangs(limits.lag_limit_seconds)
        self._last: tuple[int, int] | None = None
        """phases and ticks, when they were last looked at"""
        self._rests = 0
        """looks since they last moved"""
        self._beats = 0
        self._own, self._shared = _WatchedTime(), _WatchedTime()
        self._stopping = threading.Event()
        looks = [self.look_at_phase, *([self.look_at_ranks] if store is not None else [])]
        self._threads = [threading.Thread(target=self._repeat, args=[look], daemon=True) for look in looks]

    @classmethod
    def of_this_job(cls, place: Callable[[], PhaseProgress], limits: FaultsConfig, directory: Path) -> Watchdog:
        # Of its own: the main thread may hold the other while it waits.
        shared: Any = dist.distributed_c10d._get_default_store() if rank_and_ranks()[1] > 1 else None
        store = shared and shared.clone()
        return cls(place, limits, directory, store)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, look: Callable[[], None]) -> None:
        said = ""
        while not self._stopping.wait(_POLL_SECONDS):
            try:
                look()
            except dist.DistError:
                if not self._stopping.wait(_ALONE_SECONDS):
                    self._say("has lost the rank that held the process group's store")
                    self._end(EXIT_CODE)
                return
            except Exception as error:  # of this look; the next may find what hangs
                text = f"could not look for hangs: {error!r}"
                if text != said:
                    self._say(text)
                said = text

    def look_at_phase(self) -> None:
        """One look at this rank; ends the process where its phase is over its limit."""
        self._own.look()
        place = self._place()
        limit, taken = self._limits.limit_seconds(place.phase), place.seconds - self._own.missed(place.seconds)
        if taken > limit:
            if collectives.main_thread_waits() or collectives.under_way():
                time.sleep(_OTHERS_WAIT_SECONDS)
            self._give_up(f"{_name(place)} has taken {taken:.0f} s, the limit is {limit:.0f} s")

    def look_at_ranks(self) -> None:
        """One look at what the ranks say of themselves; ends the process where one hangs or has failed."""
        place = self._place()
        self._store.set(_beat_of(self._rank), str(self._beat(place)))
        if self._rank == 0:
            self._look_for_hangs()
        if self._store.check([failure.KEY]):
            first = self._store.get(failure.KEY).decode()
            if not self._stopping.wait(_ALONE_SECONDS) and first != str(self._rank):
                self._say(f"ends because rank {first} failed")  # it may wait in a collective for ever
                self._end(failure.EXIT_CODE)
        if self._store.check([failure.HUNG_KEY]):
            ranks, why = self._store.get(failure.HUNG_KEY).decode().split(": ", 1)
            self._end_of_hang(ranks.split(), f"in {_name(place)}, {why}")

    def _beat(self, place: PhaseProgress) -> Beat:
        limits, count = self._limits, (place.entered, place.ticks)
        self._rests = self._rests + 1 if self._last == count else 0
        self._last = count
        patience = limits.first_stall_limit_seconds if place.first else limits.stall_limit_seconds
        self._beats += 1
        return Beat(*count, self._state(place), patience, self._beats)

    def _state(self, place: PhaseProgress) -> RankState:
        if heartbeat.pace() is Pace.untimed:
            return RankState.untimed
        if heartbeat.pace() is Pace.own:
            return RankState.alone
        if self._rests and collectives.main_thread_waits():
            return RankState.waits
        if not place.phase:
            return RankState.between
        waits = self._rests >= _LOOKS_BEFORE_RECORD and collectives.under_way()
        return RankState.waits if waits else RankState.works

    def _look_for_hangs(self) -> None:
        # When this process was stopped and goes on, others may not have beaten yet.
        self._shared.look()
        keys = [_beat_of(rank) for rank in range(self._ranks)]
        if self._store.check(keys):
            beats = [Beat.parse(text.decode()) for text in self._store.multi_get(keys)]
            hang = self._hangs.found(beats, self._shared.seconds)
            if hang:
                self._store.set(failure.HUNG_KEY, f"{' '.join(map(str, hang.ranks))}: {hang.why}")

    def _end_of_hang(self, ranks: list[str], why: str) -> None:
        """The first of the ranks that hang speaks first, then the others of them, then those that only wait. None of
        the former ends before all have spoken: launchers kill who is left."""
        mine = str(self._rank)
        if mine == ranks[0]:
            self._give_up(why, linger=2 * _OTHERS_WAIT_SECONDS if ranks[1:] else 0.0)
        time.sleep(_OTHERS_WAIT_SECONDS)
        if mine in ranks:
            self._give_up(why, linger=_OTHERS_WAIT_SECONDS)
        time.sleep(_OTHERS_WAIT_SECONDS)
        self._say(f"ends because rank {', '.join(ranks)} hangs")
        self._end(EXIT_CODE)

    def _give_up(self, why: str, linger: float = 0.0) -> None:
        # A file system or a log that does not answer may be why: it gets no say in the end.
        last = threading.Timer(_ALONE_SECONDS, self._end, [EXIT_CODE])
        last.daemon = True
        last.start()
        try:
            self._say(f"hangs: {why}. Stacks of its threads:")
            faulthandler.dump_traceback(all_threads=True)
            self._record(why)
            time.sleep(linger)
        finally:
            last.cancel()
            self._end(EXIT_CODE)

    def _record(self, why: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f"rank-{self._rank}.txt").open("w") as file:
            print(f"rank {self._rank} on {socket.gethostname()}: {why}\n", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
            print(f"\nlast collectives:\n{collectives.record()}", file=file)

    def _say(self, text: str) -> None:
        logger.error(f"rank {self._rank} on {socket.gethostname()} {text}")


class _WatchedTime:
    """The time of a thread that looks every few seconds, without that in which it could not: Slurm suspends jobs."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._missed: list[tuple[float, float]] = []
        """when it went on, and the seconds before that in which it did not look"""
        self.seconds = 0.0

    def look(self) -> None:
        now = time.monotonic()
        since, usual = now - self._looked_at, 2 * _POLL_SECONDS
        self.seconds += min(since, usual)
        if since > usual:
            self._missed.append((now, since - usual))
        self._looked_at = now

    def missed(self, last: float) -> float:
        """Of so many seconds, those in which it did not look."""
        return sum(seconds for at, seconds in self._missed if at > self._looked_at - last)


def _name(place: PhaseProgress) -> str:
    return place.phase or "what follows a phase"


def _beat_of(rank: int) -> str:
    return f"tempo/beat/{rank}"
