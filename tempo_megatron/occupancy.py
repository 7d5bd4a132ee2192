"""One run works in a directory: its mark there says who it is, and is touched while it works.

That somebody touches the mark is seen by looking twice, whatever the clocks of two nodes say. A run that was killed
touches nothing, so that it stands in nobody's way.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

_MARK = "running"
_TOUCH_SECONDS = 1.0
_WATCH_SECONDS = 5.0
"""in which a run that works touches its mark, though a large object of Python's or a file system may hold it up"""
_WATCHES = 6
"""in all of which a mark is touched before its run is in the way. A cancelled job has Slurm's KillWait, 30 s, to save;
and a node may have known a mark's time from before its run was killed"""
_PAUSE_SECONDS = 0.2


class Occupied(RuntimeError):
    """Another run works in the directory; the message says who, since when, and what to do."""


@dataclass(frozen=True)
class Occupant:
    """The process of a run that wrote its mark. `machine` and `began` tell it from all others that have its number: a
    boot and a process namespace, and the kernel's count of ticks since then."""

    host: str
    process: int
    began: str
    machine: str
    job: str
    """Slurm's, and its restart; empty outside of a job"""
    since: str

    @classmethod
    def this_process(cls) -> Occupant:
        job, process = os.environ.get("SLURM_JOB_ID", ""), os.getpid()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            host=socket.gethostname(),
            process=process,
            began=_began(process),
            machine=f"{boot} {os.readlink('/proc/self/ns/pid')}",
            job=job and f"{job}, restart {os.environ.get('SLURM_RESTART_COUNT', '0')}",
            since=datetime.now(UTC).isoformat(" ", "seconds"),
        )

    def is_gone(self, me: Occupant) -> bool:
        """Whether its process is known to have ended, or to be this one. Of another machine that is not known."""
        same = self.machine == me.machine
        return same and (self.process == me.process or _began(self.process) != self.began)

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.process} on {self.host}{job}, since {self.since}"


class Occupancy:
    """This run's mark in `directory`, and its look at another's, which begins when this is made: what a run does before
    `take` is not lost to waiting. For one rank of the run."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._mark = directory, directory / _MARK
        self._me = Occupant.this_process()
        self._looked, (_, self._touched) = time.monotonic(), self._look()
        self._left = threading.Event()

    def take(self) -> None:
        """Make the directory this run's until `leave`. Raises Occupied if another run works in it.

        One that has ended is known by its process, on this machine, or else because nobody touches its mark.
        """
        for _ in range(_WATCHES):
            other = self._at_work()
            if not other:
                break
        else:
            raise Occupied(
                f"run_dir {self._directory}: another run works there: {other}; it has touched {self._mark} all the "
                f"{_WATCHES * _WATCH_SECONDS:.0f} s that this one watched. Two would destroy each other's checkpoints: "
                "let that one end or stop it, then start this one again; or give this one another run_dir"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        aside = self._directory / f".{_MARK}"
        aside.write_text(json.dumps(asdict(self._me)) + "\n")
        aside.rename(self._mark)
        threading.Thread(target=self._touch, daemon=True).start()

    def leave(self) -> None:
        """The run has ended."""
        self._left.set()
        if self._look()[0] == self._me:
            self._mark.unlink(missing_ok=True)

    def _at_work(self) -> Occupant | None:
        """Another run that touched its mark between the last look and one some seconds after it."""
        while True:
            other, touched = self._look()
            if not other or other.is_gone(self._me):
                return None
            if time.monotonic() > self._looked + _WATCH_SECONDS:
                break
            time.sleep(_PAUSE_SECONDS)
        before, self._touched, self._looked = self._touched, touched, time.monotonic()
        return other if touched != before else None

    def _look(self) -> tuple[Occupant | None, int]:
        """Who the mark names, and when it was touched; None where there is none that can be read."""
        try:
            with self._mark.open() as file:  # opening a file is what has NFS ask its server
                return Occupant(**json.load(file)), os.fstat(file.fileno()).st_mtime_ns
        except (OSError, ValueError, TypeError):  # a node that went down may have left an empty one
            return None, 0

    def _touch(self) -> None:
        while not self._left.wait(_TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._mark)


def _began(process: int) -> str:
    """When a process of this machine began; "" when it has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
