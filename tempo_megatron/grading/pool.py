"""A pool of worker processes with a hard time limit on each task.

Workers start as separate programs. Forking is unsafe, because the trainer holds CUDA, gloo threads and a generator.
Multiprocessing's spawn would import the trainer's main module again in each child.
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
from tempo_megatron.grading.worker import STARTED, SUCCEEDED, UNKNOWN_GRADER
from tempo_megatron.utils.heartbeat import Pace, expect_pace, tick

_JOB_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""The signals that Slurm sends to all processes of a job. Workers ignore them: the trainer still needs their grades."""
_LOAD_TIME_LIMIT_SECONDS = 300.0
_PROGRAM = "from tempo_megatron.grading.worker import main; main()"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # a worker uses one core
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # SymPy's order of terms may depend on hashes, and so may what it can prove equal
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class GradingTask:
    """A call of one of a grader's functions in a worker."""

    grader: str
    method: str
    arguments: tuple[Any, ...]
    limit_seconds: float


@dataclass(frozen=True)
class Outcome:
    """The value that a task returned, or in `failure` the reason why it failed."""

    value: Any = None
    failure: str = ""
    timed_out: bool = False


@dataclass(eq=False)
class _Worker:
    """A worker process and the task that it runs, by index."""

    process: subprocess.Popen
    connection: Connection
    task: int | None = None
    has_started_task: bool = False
    deadline: float = 0.0
    finished_tasks: int = 0

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Pool:
    """At most `size` workers. They start when tasks need them and live until `close`."""

    def __init__(self, size: int, memory_limit_bytes: int) -> None:
        self._size = size
        self._memory_limit_bytes = memory_limit_bytes
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def run(self, tasks: Sequence[GradingTask]) -> list[Outcome]:
        """Returns the outcome of each task, in order.

        A worker that exceeds its task's time limit is killed. It is replaced, as is a worker that dies, and only its
        own task fails. Raises GradingError if workers cannot start or do not know a grader.
        """
        outcomes: dict[int, Outcome] = {}
        queue = deque(range(len(tasks)))
        try:
            while len(outcomes) < len(tasks):
                self._assign(queue, tasks)
                self._collect(queue, tasks, outcomes)
        except BaseException:
            self.close()  # otherwise the running tasks would answer the next call
            raise
        return [outcomes[index] for index in range(len(tasks))]

    def close(self) -> None:
        """Ends the workers. A later `run` starts new ones."""
        _kill_all(self._workers)

    def _assign(self, queue: deque[int], tasks: Sequence[GradingTask]) -> None:
        """Gives queued tasks to idle workers, and starts workers up to the pool's size."""
        for worker in [worker for worker in self._workers if worker.task is None and worker.process.poll() is not None]:
            self._discard(worker)  # it died while it was idle
        idle = [worker for worker in self._workers if worker.task is None]
        while queue and (idle or len(self._workers) < self._size):
            worker = idle.pop() if idle else self._start()
            worker.task, worker.has_started_task = queue.popleft(), False
            worker.deadline = time.monotonic() + _LOAD_TIME_LIMIT_SECONDS
            task = tasks[worker.task]
            with contextlib.suppress(OSError):  # if the worker has just died, `_collect` sees its closed pipe
                worker.connection.send((task.grader, task.method, task.arguments))

    def _collect(self, queue: deque[int], tasks: Sequence[GradingTask], outcomes: dict[int, Outcome]) -> None:
        """Waits for the next message, death or deadline of a worker, and handles all that have occurred."""
        busy = [worker for worker in self._workers if worker.task is not None]
        first_deadline = min(worker.deadline for worker in busy)
        with expect_pace(Pace.untimed):  # the workers' deadlines limit this wait
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
                    self._handle_death(worker, task, queue, outcomes)
                    continue
                if kind == STARTED:
                    worker.has_started_task, worker.deadline = True, time.monotonic() + task.limit_seconds
                elif kind == UNKNOWN_GRADER:
                    raise GradingError(f"a worker cannot load the grader {task.grader!r}: {value}")
                else:
                    outcomes[index] = Outcome(value) if kind == SUCCEEDED else Outcome(failure=value)
                    worker.task, worker.finished_tasks = None, worker.finished_tasks + 1
            elif now >= worker.deadline:
                if not worker.has_started_task:
                    raise GradingError(f"a worker took over {_LOAD_TIME_LIMIT_SECONDS:g} s to load {task.grader!r}")
                self._discard(worker)
                outcomes[index] = Outcome(failure=f"over {task.limit_seconds:g} s", timed_out=True)

    def _handle_death(
        self, worker: _Worker, task: GradingTask, queue: deque[int], outcomes: dict[int, Outcome]
    ) -> None:
        """Removes a dead worker. Its task has failed if it had started, and returns to the queue otherwise."""
        assert worker.task is not None
        index = worker.task
        self._discard(worker)
        status = worker.process.returncode
        reason = f"its worker ended by {signal.Signals(-status).name if status < 0 else f'exit status {status}'}"
        if worker.has_started_task:
            outcomes[index] = Outcome(failure=reason)
        elif worker.finished_tasks:
            queue.appendleft(index)
        else:
            raise GradingError(f"a new worker could not load the grader {task.grader!r}: {reason}")

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()

    def _start(self) -> _Worker:
        parent_end, worker_end = Pipe()
        with worker_end:
            arguments = (worker_end.fileno(), self._memory_limit_bytes, os.getpid())
            path = os.pathsep.join(
                entry or os.getcwd() for entry in sys.path
            )  # users' graders import as in this process
            # The worker inherits the mask. It could not ignore the signals itself before it has loaded.
            previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_STOP_SIGNALS)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _PROGRAM, *map(str, arguments)],
                    pass_fds=[worker_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        worker = _Worker(process, parent_end)
        self._workers.append(worker)
        return worker


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
