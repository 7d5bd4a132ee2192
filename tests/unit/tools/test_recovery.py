"""tools/recovery.py: what counts as a problem. Its runs are rehearsed by hand; they take minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import recovery


def test_metrics_that_differ_or_are_absent_are_problems() -> None:
    """A run without a third iteration has no metric, and agrees with nothing."""
    same = {key: 0.5 for key in recovery._COMPARED}
    assert recovery.differences(same, same | {"critic/loss": 0.5001}) == []
    without = {key: value for key, value in same.items() if key != "policy/entropy"}
    assert recovery.differences(same, without | {"critic/loss": 0.6}) == [
        "critic/loss is 0.6, under the same layout 0.5",
        "policy/entropy is None, under the same layout 0.5",
    ]
    assert len(recovery.differences({}, {})) == len(recovery._COMPARED)


def test_a_check_that_fails_itself_is_a_problem_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other checks go on, and recovery.json is written. Processes of others, such as `other` here, go on too."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    left: list[subprocess.Popen[bytes]] = []
    other = subprocess.Popen(sleep)

    def check(*_: object) -> recovery.Figures:
        left.append(subprocess.Popen([*sleep, f"run_dir={tmp_path}/kill"]))
        raise subprocess.TimeoutExpired("tempo train", 900)

    monkeypatch.setitem(recovery.CHECKS, "kill", check)
    (problem,) = recovery._checked("kill", tmp_path, 2, ())["problems"]
    assert problem.startswith("TimeoutExpired: Command 'tempo train' timed out after 900")
    assert left[0].wait(timeout=20) < 0
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize(
    ("output", "is_named"),
    [
        ("rank 0 on node1 ends because rank 1 hangs", True),
        ("  rank      : 1 (local_rank: 1)", True),
        ("rank 0 on node1 lost another rank", False),
        ("rank 10 hangs", False),
        ("local_rank: 1", False),
    ],
)
def test_a_rank_is_named_as_the_project_or_torchrun_does(output: str, is_named: bool) -> None:
    """local_rank 1 is a rank of each node."""
    assert recovery.names_rank(output, 1) == is_named


def test_the_process_of_a_rank_is_the_one_with_its_variable() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ranks = [subprocess.Popen(sleep, env={**os.environ, "RANK": str(rank)}) for rank in (0, 1)]
    try:
        family = [psutil.Process(process.pid) for process in ranks]
        assert recovery.rank_of(family, 1).pid == ranks[1].pid
        with pytest.raises(LookupError, match="none of 2 processes is rank 2"):
            recovery.rank_of(family, 2)
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_an_unknown_check_is_refused_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recovery.main(["nowhere", "--only", "layout,bang"])
    assert "no check is called bang; there are layout, kill, hang" in capsys.readouterr().err
