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

import torch
import torch.distributed as dist

from tempo_megatron.config import FaultsConfig
from tempo_megatron.ranks import rank_and_ranks
from tempo_megatron.supervision import failure

EXIT_CODE = 70
"""of a rank that ends itself because it, or another, hangs: sysexits' "internal error"."""
_HUNG = "tempo/hung"
_POLL_SECONDS = 2.0
_ALONE_SECONDS = 20.0
"""for a main thread to notice by itself that another rank is gone"""
_OTHERS_WAIT_SECONDS = 5.0
"""so that what the hanging rank says comes first in the log"""

Place = tuple[int, str, float]
"""phases entered so far, the present one's name, seconds since it was entered"""


class Watchdog:
    """A thread of each rank that looks at where its main thread is, and at where the other ranks are.

    A phase may take no longer than its limit; and since all ranks pass through the same phases, a rank that stays a
    phase behind for `lag_limit_seconds` hangs. Its stacks, and NCCL's record of the last collectives, go to
    `directory/rank-K.txt` and the stacks to standard error; all ranks end with `EXIT_CODE`. `end` and `store` are
    replaced in tests.
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
        self._ahead: tuple[int, float] = (0, time.monotonic())
        """phases that the foremost rank has entered, and since when"""
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
        count, phase, seconds = self._place()
        limit = self._limits.limit_seconds(phase)
        if seconds > limit:
            self._give_up(f"{phase or 'what follows a phase'} has taken {seconds:.0f} s, the limit is {limit:.0f} s")
        if self._store is None:
            return
        self._store.set(f"tempo/phase/{self._rank}", str(count))
        if self._rank == 0:
            self._look_for_laggards()
        if self._store.check([failure.KEY]):
            first = self._store.get(failure.KEY).decode()
            if not self._stopping.wait(_ALONE_SECONDS) and first != str(self._rank):
                self._say(f"ends because rank {first} failed")  # it may wait in a collective for ever
                self._end(failure.EXIT_CODE)
        if self._store.check([_HUNG]):
            hung = self._store.get(_HUNG).decode()
            if str(self._rank) in hung.split():
                self._give_up(f"in {phase}, a phase behind the others for {self._limits.lag_limit_seconds:.0f} s")
            time.sleep(_OTHERS_WAIT_SECONDS)
            self._say(f"ends because of rank {', '.join(hung.split())}, which hangs")
            self._end(EXIT_CODE)

    def _look_for_laggards(self) -> None:
        keys = [f"tempo/phase/{rank}" for rank in range(self._ranks)]
        if not self._store.check(keys):
            return
        counts = [int(count) for count in self._store.multi_get(keys)]
        if max(counts) > self._ahead[0]:
            self._ahead = (max(counts), time.monotonic())
        late = [rank for rank, count in enumerate(counts) if count < self._ahead[0]]
        if late and time.monotonic() - self._ahead[1] > self._limits.lag_limit_seconds:
            self._store.set(_HUNG, " ".join(map(str, late)))

    def _give_up(self, why: str) -> None:
        self._say(f"hangs: {why}. Stacks of its threads:")
        faulthandler.dump_traceback(all_threads=True)
        # A file system that does not answer may be why: it gets no say in the end.
        last = threading.Timer(_ALONE_SECONDS, self._end, [EXIT_CODE])
        last.daemon = True
        last.start()
        try:
            self._record(why)
        finally:
            last.cancel()
            self._end(EXIT_CODE)

    def _record(self, why: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f"rank-{self._rank}.txt").open("w") as file:
            print(f"rank {self._rank} on {socket.gethostname()}: {why}\n", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
            print(f"\nlast collectives:\n{_last_collectives()}", file=file)

    def _say(self, text: str) -> None:
        print(f"tempo: rank {self._rank} on {socket.gethostname()} {text}", file=sys.stderr, flush=True)


def _last_collectives() -> str:
    """Torch's records, JSON: over gloo, and over NCCL."""
    c10d: Any = torch._C._distributed_c10d
    return f"{c10d._dump_fr_trace_json().decode()}\n{c10d._dump_nccl_trace_json().decode()}"
