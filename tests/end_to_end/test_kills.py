"""A run that is killed goes on: three kills here, thirty in docs/results/."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.warm.start import warm_python

ROOT = Path(__file__).parents[2]
LIMIT = 480


def test_a_run_that_is_killed_ends_as_one_that_is_not(demo_model: Path, tmp_path: Path) -> None:
    """SIGKILL comes at three hashed moments, one of them while a checkpoint is written. No checkpoint is lost or
    half-read. Metrics, exported weights and kept checkpoints are those of the uninterrupted run."""
    out = tmp_path / "kills"
    options = ["--kills", "3", "--iterations", "4", "--model", demo_model]
    command = [*warm_python(), ROOT / "tools" / "kill_test.py", out, *options]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-6000:]
    report = json.loads((out / "kills.json").read_text())
    assert [kill["number"] for kill in report["kills"]] == [1, 2, 3] and report["differences"] == []
    assert report["kills"][2]["aimed_at_a_save"] and not any(kill["problems"] for kill in report["kills"])
    rows = [json.loads(line) for line in (out / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["stage"] == "train"] == list(range(5))
