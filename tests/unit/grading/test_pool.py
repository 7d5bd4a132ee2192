"""The pool of workers: limits are hard, and what exceeds them costs nobody else."""

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

MINE = "tests.fixtures.grading.scorers"
GIB = 2**30


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(1, GIB)
    yield made
    made.close()


def task(name: str, text: str = "yes", limit: float = 60.0) -> GradingTask:
    return GradingTask(f"{MINE}.{name}", "grade", (text, {"answer": "y"}), limit)


def workers(pool: Pool) -> list[int]:
    """Their process ids."""
    return [worker.process.pid for worker in pool._workers]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_task_past_its_limit_fails_alone() -> None:
    """Four that hang among others are given up at their limits, before they end by themselves after 600 seconds."""
    tasks = [task("starts_with"), *[task("hangs", "", limit=0.5)] * 4, task("starts_with", "no"), task("starts_with")]
    made = Pool(2, GIB)
    outcomes = made.run(tasks)
    assert [outcome.value for outcome in outcomes] == [True, None, None, None, None, False, True]
    assert [outcome.timed_out for outcome in outcomes] == [False, True, True, True, True, False, False]
    made.close()


def test_a_memory_bomb_fails_alone(pool: Pool) -> None:
    """8 GiB asked for in a worker of 1 GiB fail there, and the next task is graded."""
    bomb, after = pool.run([task("eats_memory"), task("starts_with")])
    assert "MemoryError" in bomb.failure
    assert after.value is True


def test_a_worker_killed_while_idle_is_replaced(pool: Pool) -> None:
    """The kernel's memory killer may take one at any time; its death costs no grade."""
    pool.run([task("starts_with")])
    (first,) = workers(pool)
    os.kill(first, signal.SIGKILL)
    assert pool.run([task("starts_with"), task("starts_with", "no")])[0].value is True
    assert workers(pool) != [first]


def test_a_job_that_is_asked_to_stop_loses_no_grade(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's signals go to every process: to a worker that has only been started, and to one that is there."""
    start = subprocess.Popen

    def signalled(*given: Any, **named: Any) -> Any:
        made = start(*given, **named)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(made.pid, number)
        return made

    monkeypatch.setattr(subprocess, "Popen", signalled)
    assert pool.run([task("starts_with")])[0].value is True
    first = workers(pool)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(first[0], number)
    assert pool.run([task("starts_with")])[0].value is True
    assert workers(pool) == first


def test_workers_live_from_call_to_call_and_survive_ctrl_c(pool: Pool) -> None:
    """Loading SymPy for each batch would cost more than grading it; an interrupt is the parent's to handle."""
    assert workers(pool) == []
    pool.run([task("starts_with")])
    first = workers(pool)
    os.kill(first[0], signal.SIGINT)
    assert pool.run([task("starts_with")] * 3)[2].value is True
    assert workers(pool) == first


def test_close_ends_the_workers(pool: Pool) -> None:
    """Nothing is left behind, and a later call starts again."""
    pool.run([task("starts_with")])
    (first,) = workers(pool)
    pool.close()
    assert not alive(first)
    assert pool.run([task("starts_with")])[0].value is True


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """A killed trainer must not leave computations behind that nobody will end."""
    file = tmp_path / "pid"
    program = (
        "from tests.unit.grading.test_pool import GIB, Pool, task\n"
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
    """Grading everything 0 for want of a module would look like a bad policy."""
    with pytest.raises(GradingError, match="no_such_package"):
        pool.run([GradingTask("no_such_package.scorer", "grade", ("", {}), 1.0)])
    assert workers(pool) == []


def test_a_worker_without_the_memory_to_start_is_an_error_and_no_grade() -> None:
    """A memory limit below what the interpreter needs is a setting's mistake, not a wrong answer."""
    with pytest.raises(GradingError, match="load the grader 'math'"):
        Pool(1, 1).run([GradingTask("math", "extract", ("1",), 60.0)])
