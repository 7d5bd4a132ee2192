"""Runs that are interrupted, fail or hang, on two ranks with responses that are made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tempo_megatron.run_dir.lock import RunLock
from tests.end_to_end.test_train import exported, metrics, same_weights
from tests.parallel.launcher import run_ranks, run_under_torchrun, start_ranks

WORKER = Path(__file__).with_name("supervised_worker.py")
STAGES = ("stages.warm_start.steps=2", "stages.critic_start.iterations=2", "policy.kl_coefficient=0.1")
SMALL = ("stages.warm_start.batch_size=8", "loop.samples_per_prompt=2")
SHORT = (*STAGES, "checkpoint.every=4", "logging.tensorboard=false")


def test_an_interrupted_run_ends_as_one_that_never_was(recipe: Path, tmp_path: Path) -> None:
    """The run is interrupted in the warm start, by the deadline in the critic start, while it generates, while it
    evaluates and while it learns, each time on one rank alone. Its log and weights are bit for bit those of an
    uninterrupted run, and no stage repeats what it had learned. A finished run that is started once more adds
    nothing to its log. The ranks of the uninterrupted run count work in every phase in which the watchdog takes an
    idle rank for a hanging one."""
    uninterrupted = tmp_path / "whole"
    run_ranks(WORKER, 2, uninterrupted, recipe, *SHORT, *SMALL)
    assert metrics(tmp_path / "run") == metrics(uninterrupted)
    assert len(exported(uninterrupted)) > 10 and same_weights(tmp_path / "run", uninterrupted)


def test_a_second_run_in_a_directory_is_refused(recipe: Path, tmp_path: Path) -> None:
    """All its ranks end with 2. They touch nothing in the directory, not even the files of a save under way."""
    run, output = tmp_path / "run", tmp_path / "output.txt"
    first, save = RunLock(run), run / "checkpoints" / ".writing-iteration-000004"
    first.acquire()
    save.mkdir(parents=True)
    with output.open("w") as log:
        ranks = start_ranks(2, log.fileno(), WORKER, "second", recipe, *SHORT)
        codes = [rank.wait(timeout=300) for rank in ranks]
    first.release()
    assert codes == [2, 2]
    assert f"another run works there: process {os.getpid()} on" in output.read_text()
    assert list(run.rglob("*")) == [save.parent, save]


def test_the_rank_that_fails_is_the_one_with_the_traceback(recipe: Path, tmp_path: Path) -> None:
    """The other rank only says which rank it lost."""
    with pytest.raises(AssertionError) as failed:
        run_under_torchrun(WORKER, 2, "fail", recipe, *SHORT)
    output = str(failed.value)
    assert "rank 1" in output and "ValueError: what rank 1 stumbled over" in output
    assert "ends because rank 1 failed" in output
    assert "ValueError: what rank 1" in (tmp_path / "run" / "failures" / "rank-1.txt").read_text()
    assert not (tmp_path / "run" / "failures" / "rank-0.txt").exists()


def test_a_rank_that_hangs_ends_the_run_and_is_named(recipe: Path, tmp_path: Path) -> None:
    """Rank 1 sleeps in the middle of a micro-batch, and rank 0 waits for it in the same phase: only missing progress
    shows the hang. Rank 1's stack comes first and shows where it hangs."""
    with pytest.raises(AssertionError) as failed:
        run_ranks(WORKER, 2, "hang", recipe, *SHORT)
    output = str(failed.value)
    assert "no end within" not in output
    _, _, report = output.partition("ERROR rank ")
    assert report.startswith("1 on ") and "hangs: in advantages, where no rank has done anything for 15 s" in report
    first, _, rest = report.partition("ERROR rank ")
    assert "in hangs" in first and rest.startswith("0 on ") and "ends because rank 1 hangs" in rest
    assert "in hangs" in (tmp_path / "run" / "flight" / "rank-1.txt").read_text()
    assert not (tmp_path / "run" / "flight" / "rank-0.txt").exists()
