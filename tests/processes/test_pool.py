"""`Pool`: limits are hard, and a task that exceeds one affects no other task."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.grading.errors import GradingError
from tempo_megatron.grading.pool import GradingTask, Pool

GRADERS = "tests.fixtures.grading.user_graders"
GIB = 2**30


@pytest.fixture
def pool() -> Iterator[Pool]:
    worker_pool = Pool(1, GIB)
    yield worker_pool
    worker_pool.close()


def task(name: str, text: str = "yes", limit: float = 60.0) -> GradingTask:
    return GradingTask(f"{GRADERS}.{name}", "grade", (text, {"answer": "y"}), limit)


def worker_ids(pool: Pool) -> list[int]:
    """Returns the workers' process ids."""
    return [worker.process.pid for worker in pool._workers]


def wait_until(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.05)


def alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_task_past_its_limit_fails_alone() -> None:
    """Four tasks that would sleep for 600 seconds fail at their limits, and the other tasks succeed."""
    tasks = [task("starts_with"), *[task("hangs", "", limit=0.5)] * 4, task("starts_with", "no"), task("starts_with")]
    pool = Pool(2, GIB)
    outcomes = pool.run(tasks)
    assert [outcome.value for outcome in outcomes] == [True, None, None, None, None, False, True]
    assert [outcome.timed_out for outcome in outcomes] == [False, True, True, True, True, False, False]
    pool.close()


def test_a_task_past_the_memory_limit_fails_alone(pool: Pool) -> None:
    """A request of 8 GiB fails in a worker of 1 GiB, and the next task succeeds."""
    too_large, next_task = pool.run([task("eats_memory"), task("starts_with")])
    assert "MemoryError" in too_large.failure
    assert next_task.value is True


def test_a_worker_killed_while_idle_is_replaced(pool: Pool) -> None:
    """The kernel may kill a worker at any time. An idle worker's death costs no grade."""
    pool.run([task("starts_with")])
    (first,) = worker_ids(pool)
    os.kill(first, signal.SIGKILL)
    assert pool.run([task("starts_with"), task("starts_with", "no")])[0].value is True
    assert worker_ids(pool) != [first]


def test_slurms_stop_signals_cost_no_grade(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm signals all processes of a job: workers that are starting, and workers that are ready."""
    start = subprocess.Popen

    def start_and_signal(*args: Any, **kwargs: Any) -> Any:
        process = start(*args, **kwargs)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(process.pid, number)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_signal)
    assert pool.run([task("starts_with")])[0].value is True
    first = worker_ids(pool)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(first[0], number)
    assert pool.run([task("starts_with")])[0].value is True
    assert worker_ids(pool) == first


def test_workers_live_from_call_to_call_and_survive_ctrl_c(pool: Pool) -> None:
    """Loading SymPy for each batch would take longer than grading it. The parent handles interrupts."""
    assert worker_ids(pool) == []
    pool.run([task("starts_with")])
    first = worker_ids(pool)
    os.kill(first[0], signal.SIGINT)
    assert pool.run([task("starts_with")] * 3)[2].value is True
    assert worker_ids(pool) == first


def test_close_ends_the_workers(pool: Pool) -> None:
    """No process remains, and a later call starts workers again."""
    pool.run([task("starts_with")])
    (first,) = worker_ids(pool)
    pool.close()
    assert not alive(first)
    assert pool.run([task("starts_with")])[0].value is True


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """A killed trainer must not leave computations that run on."""
    file = tmp_path / "pid"
    program = (
        "from tests.processes.test_pool import GIB, Pool, task\n"
        f"Pool(1, GIB).run([task('hangs', {str(file)!r}, limit=600)])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    wait_until(lambda: file.is_file() and bool(file.read_text()), "the worker did not begin")
    worker = int(file.read_text())
    assert alive(worker)
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(worker), "the worker outlived its parent")


def test_a_grader_that_workers_cannot_load_is_an_error_and_no_grade(pool: Pool) -> None:
    """Grades of 0 because of a missing module would look like a bad policy."""
    with pytest.raises(GradingError, match="no_such_package"):
        pool.run([GradingTask("no_such_package.grader", "grade", ("", {}), 1.0)])
    assert worker_ids(pool) == []


def test_a_worker_without_the_memory_to_start_is_an_error_and_no_grade() -> None:
    """A memory limit below the interpreter's need is a mistake in the settings, not a wrong answer."""
    with pytest.raises(GradingError, match="load the grader 'math'"):
        Pool(1, 1).run([GradingTask("math", "extract", ("1",), 60.0)])
