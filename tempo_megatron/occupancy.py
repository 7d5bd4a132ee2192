"""One run works in a directory: its mark there says who it is, and is touched while it works.

That somebody touches the mark is seen by looking twice, whatever the clocks of two nodes say. A run that was killed
touches nothing, so that it stands in nobody's way.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
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
        self._seen: Occupant | None = None
        self._looked, (_, self._touched) = time.monotonic(), self._look()
        self._left = threading.Event()

    def take(self) -> None:
        """Make the directory this run's until `leave`. Raises Occupied if another run works in it.

        One that has ended is known by its process, on this machine, or else because nobody touches its mark.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for _ in range(_WATCHES):
            other = self._at_work()
            if not other and self._claim():
                break
        else:
            raise Occupied(
                f"run_dir {self._directory}: another run works there: {other or self._seen}; it has touched "
                f"{self._mark} all the {_WATCHES * _WATCH_SECONDS:.0f} s that this one watched. Two would destroy each "
                "other's checkpoints: let that one end or stop it, then start this one again; or give this one another "
                "run_dir"
            )
        threading.Thread(target=self._touch, daemon=True).start()

    def leave(self) -> None:
        """The run has ended."""
        self._left.set()
        if self._look()[0] == self._me:
            self._mark.unlink(missing_ok=True)

    def _claim(self) -> bool:
        """Put this run's mark where there is none but the one last seen; False where another run was quicker."""
        mine, old = (self._directory / f".{_MARK}-{self._me.host}-{self._me.process}-{end}" for end in ("new", "old"))
        mine.write_text(json.dumps(asdict(self._me)) + "\n")
        try:
            if self._mark.exists():
                self._mark.rename(old)  # of several that do this at once one has it
                if _read(old)[0] != self._seen:
                    old.rename(self._mark)  # that of a run which has begun since
                    return False
            _place(mine, self._mark)
        except (FileExistsError, FileNotFoundError):
            return False
        finally:
            mine.unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        return True

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
        self._seen, touched = _read(self._mark)
        return self._seen, touched

    def _touch(self) -> None:
        while not self._left.wait(_TOUCH_SECONDS):
            other, _ = _read(self._mark)
            if other and other != self._me:
                return self._give_way(other)
            with contextlib.suppress(OSError):
                os.utime(self._mark)

    def _give_way(self, other: Occupant) -> None:
        """Another run has begun here, for this one stood still: the process ends, unless the other is in it too."""
        if (other.machine, other.process) == (self._me.machine, self._me.process):
            return
        print(
            f"tempo: run_dir {self._directory} was taken over by {other}: this run, {self._me}, had not touched "
            f"{self._mark} for {_WATCH_SECONDS:.0f} s. It ends, or the two would destroy each other's checkpoints",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def _place(made: Path, mark: Path) -> None:
    """Raises FileExistsError where there is a mark, which a rename would replace."""
    try:
        os.link(made, mark)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        made.rename(mark)  # a file system without hard links


def _read(mark: Path) -> tuple[Occupant | None, int]:
    """Who a mark names, and when it was touched; None where there is none that can be read."""
    try:
        with mark.open() as file:  # opening a file that is there has NFS ask its server for what is new
            return Occupant(**json.load(file)), os.fstat(file.fileno()).st_mtime_ns
    except (OSError, ValueError, TypeError):  # a node that went down may have left an empty one
        return None, 0


def _began(process: int) -> str:
    """When a process of this machine began; "" when it has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
