"""Worker processes with a hard limit on each task.

Workers are started as programs of their own, neither forked (the trainer holds CUDA, gloo threads and a generator) nor
by multiprocessing's spawn (which imports the trainer's main module again in every child).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from tempo_megatron.grading.errors import GradingError
from tempo_megatron.grading.worker import BEGUN, DONE, UNKNOWN
from tempo_megatron.utils.heartbeat import Pace, expect_pace, tick

_STOPPING_A_JOB = (signal.SIGUSR1, signal.SIGTERM)
"""Slurm sends them to every process of a job: the trainer saves, and grades that it waits for must not be lost"""
_LOADING_LIMIT_SECONDS = 300.0
_PROGRAM = "from tempo_megatron.grading.worker import main; main()"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # a worker is one core's
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # SymPy's order of terms, and so what it can show equal, may follow hashes
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class GradingTask:
    """A method of a grader's scorer, called in a worker."""

    grader: str
    method: str
    arguments: tuple[Any, ...]
    limit_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a task returned, or in `failure` why it returned nothing."""

    value: Any = None
    failure: str = ""
    timed_out: bool = False


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen
    connection: Connection
    task: int | None = None
    begun: bool = False
    deadline: float = 0.0
    finished_tasks: int = 0

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Pool:
    """At most `size` workers, started when there is work for them and kept until `close`."""

    def __init__(self, size: int, memory_limit_bytes: int) -> None:
        self._size = size
        self._memory_limit_bytes = memory_limit_bytes
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def run(self, tasks: Sequence[GradingTask]) -> list[Outcome]:
        """The outcome of each task, in order.

        A worker past its task's limit is killed, one that dies is noticed; both are replaced, and only their own task
        fails. Raises GradingError when workers cannot be started or a grader is unknown to them.
        """
        outcomes: dict[int, Outcome] = {}
        queue = deque(range(len(tasks)))
        try:
            while len(outcomes) < len(tasks):
                self._assign(queue, tasks)
                self._collect(queue, tasks, outcomes)
        except BaseException:
            self.close()  # what is under way would answer the next call
            raise
        return [outcomes[index] for index in range(len(tasks))]

    def close(self) -> None:
        """End the workers. A later `run` starts new ones."""
        _kill_all(self._workers)

    def _assign(self, queue: deque[int], tasks: Sequence[GradingTask]) -> None:
        for worker in [worker for worker in self._workers if worker.task is None and worker.process.poll() is not None]:
            self._discard(worker)  # died while it was idle
        idle = [worker for worker in self._workers if worker.task is None]
        while queue and (idle or len(self._workers) < self._size):
            worker = idle.pop() if idle else self._start()
            worker.task, worker.begun = queue.popleft(), False
            worker.deadline = time.monotonic() + _LOADING_LIMIT_SECONDS
            task = tasks[worker.task]
            with contextlib.suppress(OSError):  # it has just died, and `_collect` finds its pipe closed
                worker.connection.send((task.grader, task.method, task.arguments))

    def _collect(self, queue: deque[int], tasks: Sequence[GradingTask], outcomes: dict[int, Outcome]) -> None:
        """Wait for the next message, death or deadline, and take in all that there are."""
        busy = [worker for worker in self._workers if worker.task is not None]
        first_deadline = min(worker.deadline for worker in busy)
        with expect_pace(Pace.untimed):  # deadlines bound it
            ready = wait([worker.connection for worker in busy], max(0.0, first_deadline - time.monotonic()))
        tick()
        now = time.monotonic()
        for worker in busy:
            assert worker.task is not None
            index, task = worker.task, tasks[worker.task]
            if worker.connection in ready:
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    self._bury(worker, task, queue, outcomes)
                    continue
                if kind == BEGUN:
                    worker.begun, worker.deadline = True, time.monotonic() + task.limit_seconds
                elif kind == UNKNOWN:
                    raise GradingError(f"a worker cannot load the grader {task.grader!r}: {value}")
                else:
                    outcomes[index] = Outcome(value) if kind == DONE else Outcome(failure=value)
                    worker.task, worker.finished_tasks = None, worker.finished_tasks + 1
            elif now >= worker.deadline:
                if not worker.begun:
                    raise GradingError(f"a worker took over {_LOADING_LIMIT_SECONDS:g} s to load {task.grader!r}")
                self._discard(worker)
                outcomes[index] = Outcome(failure=f"over {task.limit_seconds:g} s", timed_out=True)

    def _bury(self, worker: _Worker, task: GradingTask, queue: deque[int], outcomes: dict[int, Outcome]) -> None:
        """A worker is dead. Its task has failed, or is tried again where it had not begun."""
        assert worker.task is not None
        index = worker.task
        self._discard(worker)
        status = worker.process.returncode
        ended = f"its worker ended by {signal.Signals(-status).name if status < 0 else f'exit status {status}'}"
        if worker.begun:
            outcomes[index] = Outcome(failure=ended)
        elif worker.finished_tasks:
            queue.appendleft(index)
        else:
            raise GradingError(f"a new worker could not load the grader {task.grader!r}: {ended}")

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        with theirs:
            arguments = (theirs.fileno(), self._memory_limit_bytes, os.getpid())
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # a user's scorers are found as here
            # Inherited, since a worker that has just started could not ignore them yet.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING_A_JOB)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _PROGRAM, *map(str, arguments)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
