"""One run works in a directory: its mark there says who it is, and is touched while it works.

That somebody touches the mark is seen by looking twice, whatever the clocks of two nodes say. A run that was killed
touches nothing, so that it stands in nobody's way. Marks are numbered, and the newest counts: whoever follows a run
makes the file of the next number, which one of several can, and never moves nor replaces another's.
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

from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

_MARK = "running-"
_TOUCH_SECONDS = 1.0
_WATCH_SECONDS = 5.0
"""in which a run that works touches its mark, though a large object of Python's or a file system may hold it up"""
_WATCHES = 6
"""in all of which a mark is touched before its run is in the way. A canceled job has Slurm's KillWait, 30 s, to save;
and a node may have known a mark's time from before its run was killed"""
_PAUSE_SECONDS = 0.2


class RunDirectoryInUse(RuntimeError):
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


@dataclass(frozen=True)
class _Mark:
    """What a look at the newest mark of a directory found."""

    number: int
    """from 1; 0: there is none"""
    occupant: Occupant | None
    """None where the mark cannot be read: it is being written, or a node went down that wrote it"""
    touched: int
    """nanoseconds of the file system's clock"""


class RunLock:
    """This run's mark in `directory`, and its look at another's, which begins when this is made: what a run does before
    `take` is not lost to waiting. For one rank of the run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._me = Occupant.this_process()
        self._seen = self._before = _newest(directory)
        self._looked = time.monotonic()
        self._left = threading.Event()

    def take(self) -> None:
        """Make the directory this run's until `leave`. Raises Occupied if another run works in it.

        One that has ended is known by its process, on this machine, or else because nobody touches its mark.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for _ in range(_WATCHES):
            if not self._is_at_work() and self._claim():
                break
        else:
            raise RunDirectoryInUse(
                f"run_dir {self._directory}: another run works there: {self._seen.occupant or 'of unknown name'}; it "
                f"has touched {_path(self._directory, self._seen.number)} all the {_WATCHES * _WATCH_SECONDS:.0f} s "
                "that this one watched. Two would destroy each other's checkpoints: let that one end or stop it, then "
                "start this one again; or give this one another run_dir"
            )
        threading.Thread(target=self._touch, args=[self._seen.number], daemon=True).start()

    def leave(self) -> None:
        """The run has ended. A mark that cannot be removed is in nobody's way: its process is gone."""
        self._left.set()
        newest = _newest(self._directory)
        if newest.occupant == self._me:
            with contextlib.suppress(OSError):
                _path(self._directory, newest.number).unlink(missing_ok=True)

    def _is_at_work(self) -> bool:
        """Whether another run touched its mark between the last look and one some seconds after it."""
        while True:
            self._seen = _newest(self._directory)
            gone = self._seen.occupant and self._seen.occupant.is_gone(self._me)
            if gone or not self._seen.number:
                return False
            if time.monotonic() > self._looked + _WATCH_SECONDS:
                break
            time.sleep(_PAUSE_SECONDS)
        before, self._before, self._looked = self._before, self._seen, time.monotonic()
        return self._seen != before

    def _claim(self) -> bool:
        """Follow the run last seen; False where another one was quicker."""
        number = self._seen.number + 1
        mark = _path(self._directory, number)
        try:
            with mark.open("x") as file:
                file.write(json.dumps(asdict(self._me)) + "\n")
        except FileExistsError:
            return False
        except OSError:  # no room, say
            mark.unlink(missing_ok=True)
            raise
        self._seen = _newest(self._directory)
        if self._seen.number != number:  # others came and went since the last look
            mark.unlink(missing_ok=True)
            return False
        for older in _numbers(self._directory):
            if older < number:
                _path(self._directory, older).unlink(missing_ok=True)
        return True

    def _touch(self, number: int) -> None:
        while not self._left.wait(_TOUCH_SECONDS):
            other = _newest(self._directory).occupant
            if self._left.is_set():
                return  # whoever was found there has followed
            if other and other != self._me:
                return self._give_way(other)
            with contextlib.suppress(OSError):
                os.utime(_path(self._directory, number))

    def _give_way(self, other: Occupant) -> None:
        """Another run has begun here, for this one stood still: the process ends, unless the other is in it too."""
        if (other.machine, other.process) == (self._me.machine, self._me.process):
            return
        logger.error(
            f"run_dir {self._directory} was taken over by {other}: this run, {self._me}, had not touched its "
            f"mark for {_WATCH_SECONDS:.0f} s. It ends, or the two would destroy each other's checkpoints"
        )
        os._exit(1)


def _path(directory: Path, number: int) -> Path:
    return directory / f"{_MARK}{number}"


def _numbers(directory: Path) -> list[int]:
    """Of the marks in a directory."""
    numbers = (path.name.removeprefix(_MARK) for path in directory.glob(f"{_MARK}*"))
    return [int(number) for number in numbers if number.isdecimal()]


def _newest(directory: Path) -> _Mark:
    number = max(_numbers(directory), default=0)
    try:
        with _path(directory, number).open() as file:  # opening has NFS ask its server for what is new
            touched = os.fstat(file.fileno()).st_mtime_ns
            try:
                return _Mark(number, Occupant(**json.load(file)), touched)
            except (ValueError, TypeError):
                return _Mark(number, None, touched)
    except OSError:
        return _Mark(number, None, 0)


def _began(process: int) -> str:
    """When a process of this machine began; "" when it has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
