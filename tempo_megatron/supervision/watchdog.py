"""Ends a run in which a rank hangs, and says which and where."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tempo_megatron import progress
from tempo_megatron.config import FaultsConfig
from tempo_megatron.progress import Pace, Place
from tempo_megatron.ranks import rank_and_ranks
from tempo_megatron.supervision import collectives, failure
from tempo_megatron.supervision.hangs import Beat, Hangs, State

EXIT_CODE = 70
"""of a rank that ends itself because it, or another, hangs: sysexits' "internal error"."""
_HUNG = "tempo/hung"
_POLL_SECONDS = 2.0
_LOOKS_BEFORE_RECORD = 5
"""at a count that rests, before torch's record of collectives is read: that takes tens of ms of the interpreter"""
_ALONE_SECONDS = 20.0
"""for a main thread to notice by itself that another rank is gone"""
_OTHERS_WAIT_SECONDS = 5.0
"""so that what the hanging rank says comes first in the log"""


class Watchdog:
    """A thread of each rank that looks at where its main thread is, tells the others, and hears what they tell.

    A phase may take no longer than its limit, and `hangs` has the rules by which the first rank finds one that hangs.
    Its stacks, and the record of the last collectives, go to `directory/rank-K.txt` and the stacks to standard error;
    all ranks end with `EXIT_CODE`. `end` and `store` are replaced in tests.
    """

    def __init__(
        self,
        place: Callable[[], Place],
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
        self._looked_at = time.monotonic()
        self._watched_seconds = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @classmethod
    def of_this_job(cls, place: Callable[[], Place], limits: FaultsConfig, directory: Path) -> Watchdog:
        # Of its own: the main thread may hold the other while it waits.
        shared: Any = dist.distributed_c10d._get_default_store() if rank_and_ranks()[1] > 1 else None
        store = shared and shared.clone()
        return cls(place, limits, directory, store)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            try:
                self.look()
            except dist.DistError:
                if not self._stopping.wait(_ALONE_SECONDS):
                    self._say("has lost the rank that held the process group's store")
                    self._end(EXIT_CODE)
                return

    def look(self) -> None:
        """One look; ends the process where something hangs."""
        place = self._place()
        limit = self._limits.limit_seconds(place.phase)
        name = place.phase or "what follows a phase"
        if place.seconds > limit:
            if collectives.main_thread_waits() or collectives.under_way():
                time.sleep(_OTHERS_WAIT_SECONDS)
            self._give_up(f"{name} has taken {place.seconds:.0f} s, the limit is {limit:.0f} s")
        if self._store is None:
            return
        self._store.set(_beat_of(self._rank), str(self._beat(place)))
        if self._rank == 0:
            self._look_for_hangs()
        if self._store.check([failure.KEY]):
            first = self._store.get(failure.KEY).decode()
            if not self._stopping.wait(_ALONE_SECONDS) and first != str(self._rank):
                self._say(f"ends because rank {first} failed")  # it may wait in a collective for ever
                self._end(failure.EXIT_CODE)
        if self._store.check([_HUNG]):
            ranks, why = self._store.get(_HUNG).decode().split(": ", 1)
            self._end_of_hang(ranks.split(), f"in {name}, {why}")

    def _beat(self, place: Place) -> Beat:
        limits, count = self._limits, (place.entered, place.ticks)
        self._rests = self._rests + 1 if self._last == count else 0
        self._last = count
        patience = limits.first_stall_limit_seconds if place.first else limits.stall_limit_seconds
        return Beat(*count, self._state(place), patience)

    def _state(self, place: Place) -> State:
        if progress.pace() is Pace.untimed:
            return State.untimed
        if progress.pace() is Pace.own:
            return State.alone
        if self._rests and collectives.main_thread_waits():
            return State.waits
        if not place.phase:
            return State.between
        waits = self._rests >= _LOOKS_BEFORE_RECORD and collectives.under_way()
        return State.waits if waits else State.works

    def _look_for_hangs(self) -> None:
        # A process that was stopped and goes on finds no time to have passed: others may not have beaten yet.
        now = time.monotonic()
        self._watched_seconds += min(now - self._looked_at, 2 * _POLL_SECONDS)
        self._looked_at = now
        keys = [_beat_of(rank) for rank in range(self._ranks)]
        if self._store.check(keys):
            beats = [Beat.parse(text.decode()) for text in self._store.multi_get(keys)]
            hang = self._hangs.found(beats, self._watched_seconds)
            if hang:
                self._store.set(_HUNG, f"{' '.join(map(str, hang.ranks))}: {hang.why}")

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
        self._say(f"ends because of rank {', '.join(ranks)}, which hangs")
        self._end(EXIT_CODE)

    def _give_up(self, why: str, linger: float = 0.0) -> None:
        self._say(f"hangs: {why}. Stacks of its threads:")
        faulthandler.dump_traceback(all_threads=True)
        # A file system that does not answer may be why: it gets no say in the end.
        last = threading.Timer(_ALONE_SECONDS, self._end, [EXIT_CODE])
        last.daemon = True
        last.start()
        try:
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
        print(f"tempo: rank {self._rank} on {socket.gethostname()} {text}", file=sys.stderr, flush=True)


def _beat_of(rank: int) -> str:
    return f"tempo/beat/{rank}"
