"""tools/recovery.py: what counts as a problem. Its runs are rehearsed by hand; they take minutes."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import recovery


def test_metrics_that_differ_or_are_absent_are_problems() -> None:
    same = {"critic/loss": 0.5, "policy/reward": -0.25, "policy/entropy": 4.0}
    assert recovery.differences(same, same | {"critic/loss": 0.5001}) == []
    assert recovery.differences(same, {"critic/loss": 0.6, "policy/reward": -0.25}) == [
        "critic/loss is 0.6, under the same layout 0.5",
        "policy/entropy is None, under the same layout 4.0",
    ]


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
