"""MLflow itself: a run whose server does not answer is in a database that MLflow reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOG = """
import sys
from pathlib import Path
from tempo_megatron.config import LoggingConfig, TrackerMode
from tempo_megatron.metrics.writers import MetricsLog

run_dir, lines = Path(sys.argv[1]), int(sys.argv[2])
log = MetricsLog(run_dir, LoggingConfig(tensorboard=False, mlflow=TrackerMode.online), lines)
log.write({"iteration": lines, "evaluation/unlabeled/AIME (a+b)/../avg@8": 0.25 + lines, "stage": "train"})
log.close()
"""
READ = """
import json, sys
from mlflow import MlflowClient

client = MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}/mlflow.db")
(run,) = client.search_runs([client.get_experiment_by_name("tempo-megatron").experiment_id])
history = client.get_metric_history(run.info.run_id, "evaluation/unlabeled/AIME _a_b_/_/avg_at_8")
print(json.dumps([run.info.run_name, run.info.status, sorted((metric.step, metric.value) for metric in history)]))
"""


def python(monkeypatch: pytest.MonkeyPatch, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, since MLflow changes loggers and environment of its process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def test_a_run_without_a_server_is_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts of one run are one run of MLflow, which takes metrics of a source whatever its name."""
    (run_dir := tmp_path / "demo").mkdir()
    for lines in (0, 1):
        assert "MLflow does not answer" in python(monkeypatch, LOG, run_dir, lines).stderr
    read = python(monkeypatch, READ, run_dir).stdout.splitlines()[-1]
    assert json.loads(read) == ["demo", "FINISHED", [[0, 0.25], [1, 1.25]]]
