"""The lock of a run directory: only one run works in it.

A run creates a lock file that names its owner, and touches it every second. Another run watches the file for five
seconds at a time. If the file's time has not changed in one of six such watches, the owner is gone and the lock
expires. If it has changed in all six, the other run is refused. No clocks of two nodes are compared.

Lock files are numbered, and the newest counts. A run that takes over creates the file of the next number. Only one of
several runs can create it, and none moves or replaces the file of another.
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

_PREFIX = "running-"
"""The prefix of lock files' names; a number follows."""
_TOUCH_SECONDS = 1.0
_WATCH_SECONDS = 5.0
"""The time in which a live run has touched its lock file, even if Python or the file system delays it."""
_WATCHES = 6
"""The number of watches in a row that must see the file touched before its owner counts as alive.

A canceled job has 30 s (Slurm's KillWait) to save and end. A node may also first see an outdated time of the file.
"""
_PAUSE_SECONDS = 0.2


class RunDirectoryInUse(RuntimeError):
    """Another run works in the directory. The message says which, since when, and what to do."""


@dataclass(frozen=True)
class LockOwner:
    """The process of the run that created a lock file."""

    host: str
    process: int
    """The process id."""
    began: str
    """The start of the process in the kernel's ticks. It tells apart processes that had the same id."""
    machine: str
    """The machine's boot id and process namespace."""
    job: str
    """The Slurm job and its restart. It is empty outside of a job."""
    since: str
    """The time at which the lock was made."""

    @classmethod
    def this_process(cls) -> LockOwner:
        """Return the owner of locks that this process makes."""
        job, process = os.environ.get("SLURM_JOB_ID", ""), os.getpid()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            host=socket.gethostname(),
            process=process,
            began=_process_start(process),
            machine=f"{boot} {os.readlink('/proc/self/ns/pid')}",
            job=job and f"{job}, restart {os.environ.get('SLURM_RESTART_COUNT', '0')}",
            since=datetime.now(UTC).isoformat(" ", "seconds"),
        )

    def has_ended(self, this: LockOwner) -> bool:
        """Whether the owner's process is known to have ended, or is this one.

        For a process of another machine it is not known, and the result is False.
        """
        same_machine = self.machine == this.machine
        return same_machine and (self.process == this.process or _process_start(self.process) != self.began)

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.process} on {self.host}{job}, since {self.since}"


@dataclass(frozen=True)
class _LockFile:
    """The newest lock file of a directory, as it was at one time."""

    number: int
    """The number of the file, from 1. It is 0 where there is no lock file."""
    owner: LockOwner | None
    """The owner. It is None for a file that is being written, or that a node wrote as it went down."""
    touched: int
    """The file's time in nanoseconds of the file system's clock."""


class RunLock:
    """The lock of a run directory, for one rank of the run.

    The first look at another run's lock file happens in the constructor. The time between it and `acquire` counts as
    watching.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._owner = LockOwner.this_process()
        self._newest = self._watched = _newest_lock_file(directory)
        self._watch_start = time.monotonic()
        self._released = threading.Event()

    def acquire(self) -> None:
        """Lock the directory for this run until `release`. Raises RunDirectoryInUse if another run works in it.

        A run of this machine has ended if its process has. Of another machine, it has ended if nobody touches its lock
        file.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for _ in range(_WATCHES):
            if not self._owner_is_alive() and self._create_next():
                break
        else:
            raise RunDirectoryInUse(
                f"run_dir {self._directory}: another run works there: {self._newest.owner or 'of unknown name'}; it "
                f"has touched {_path(self._directory, self._newest.number)} all the {_WATCHES * _WATCH_SECONDS:.0f} s "
                "that this one watched. Two would destroy each other's checkpoints: let that one end or stop it, then "
                "start this one again; or give this one another run_dir"
            )
        threading.Thread(target=self._touch, args=[self._newest.number], daemon=True).start()

    def release(self) -> None:
        """Remove the lock file. If that fails, the file expires, because its process ends."""
        self._released.set()
        newest = _newest_lock_file(self._directory)
        if newest.owner == self._owner:
            with contextlib.suppress(OSError):
                _path(self._directory, newest.number).unlink(missing_ok=True)

    def _owner_is_alive(self) -> bool:
        """Whether another run touched its lock file during one watch."""
        while True:
            self._newest = _newest_lock_file(self._directory)
            has_ended = self._newest.owner and self._newest.owner.has_ended(self._owner)
            if has_ended or not self._newest.number:
                return False
            if time.monotonic() > self._watch_start + _WATCH_SECONDS:
                break
            time.sleep(_PAUSE_SECONDS)
        before, self._watched, self._watch_start = self._watched, self._newest, time.monotonic()
        return self._newest != before

    def _create_next(self) -> bool:
        """Create the lock file after the newest one; return False where another run was faster."""
        number = self._newest.number + 1
        path = _path(self._directory, number)
        try:
            with path.open("x") as file:
                file.write(json.dumps(asdict(self._owner)) + "\n")
        except FileExistsError:
            return False
        except OSError:  # for example a full disk
            path.unlink(missing_ok=True)
            raise
        self._newest = _newest_lock_file(self._directory)
        if self._newest.number != number:  # other runs have come and gone since the last look
            path.unlink(missing_ok=True)
            return False
        for older in _numbers(self._directory):
            if older < number:
                _path(self._directory, older).unlink(missing_ok=True)
        return True

    def _touch(self, number: int) -> None:
        """Touch the lock file until the release; end the process if another run has taken over."""
        while not self._released.wait(_TOUCH_SECONDS):
            other = _newest_lock_file(self._directory).owner
            if self._released.is_set():
                return  # another run may have the directory by now, and rightly
            if other and other != self._owner:
                return self._give_way(other)
            with contextlib.suppress(OSError):
                os.utime(_path(self._directory, number))

    def _give_way(self, other: LockOwner) -> None:
        """End this process, unless the other run is in it too: the other took over while this one stood still."""
        if (other.machine, other.process) == (self._owner.machine, self._owner.process):
            return
        logger.error(
            f"run_dir {self._directory} was taken over by {other}: this run, {self._owner}, had not touched its "
            f"lock file for {_WATCH_SECONDS:.0f} s. It ends, or the two would destroy each other's checkpoints"
        )
        os._exit(1)


def _path(directory: Path, number: int) -> Path:
    return directory / f"{_PREFIX}{number}"


def _numbers(directory: Path) -> list[int]:
    """Return the numbers of the lock files in a directory."""
    numbers = (path.name.removeprefix(_PREFIX) for path in directory.glob(f"{_PREFIX}*"))
    return [int(number) for number in numbers if number.isdecimal()]


def _newest_lock_file(directory: Path) -> _LockFile:
    number = max(_numbers(directory), default=0)
    try:
        with _path(directory, number).open() as file:  # opening makes NFS ask its server for the current state
            touched = os.fstat(file.fileno()).st_mtime_ns
            try:
                return _LockFile(number, LockOwner(**json.load(file)), touched)
            except (ValueError, TypeError):
                return _LockFile(number, None, touched)
    except OSError:
        return _LockFile(number, None, 0)


def _process_start(process: int) -> str:
    """Return the start of a process of this machine in the kernel's ticks; "" if the process has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
