"""metrics.jsonl through resumes, kills and nodes that go down."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tempo_megatron.config import LoggingConfig, TrackerMode
from tempo_megatron.metrics.trackers import mlflow_name
from tempo_megatron.metrics.writers import MetricsLog
from tests.disk import full_after


def opened(directory: Path, lines: int) -> MetricsLog:
    return MetricsLog(directory, LoggingConfig(tensorboard=False), lines)


def rows(directory: Path) -> list[Any]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_is_cut_back_to_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    """Lines that were written after the checkpoint are written again, a torn one among them."""
    log = opened(tmp_path, 0)
    for step in range(4):
        log.write({"step": step, "text": "\u2028 of two bytes: é"})
    with log.path.open("a") as file:
        file.write('{"step": 4, "te')
    opened(tmp_path, 2).write({"step": 2, "again": True})
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]
    assert rows(tmp_path)[2]["again"]


def test_resuming_writes_no_line_anew(tmp_path: Path) -> None:
    """Here none can be: a log that was emptied first, to be written again, would be lost to a kill in between."""
    log = opened(tmp_path, 0)
    for step in range(3):
        log.write({"step": step})
    with full_after(0):
        opened(tmp_path, 2)
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def test_a_line_is_on_the_disk_once_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint counts it and is synced itself: after a node goes down the count must not exceed the lines."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log = opened(tmp_path, 0)
    for step in range(2):
        log.write({"step": step})
        assert synced[step:] == [log.path.stat().st_size]


class FakeTracker:
    """Notes what it gets; fails at the steps of `fails`, and at the end if -1 is among them."""

    def __init__(self, name: str, *fails: int) -> None:
        self.name, self.fails, self.steps = name, fails, list[int]()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._fail(step)
        self.steps.append(step)

    def close(self) -> None:
        self._fail(-1)
        self.steps.append(-1)

    def _fail(self, step: int) -> None:
        if step in self.fails:
            raise ConnectionError("no network")


def test_a_tracker_that_fails_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In between it logs no further, and the others go on; at the end the run has its result."""
    log = opened(tmp_path, 0)
    trackers = [FakeTracker("sound"), FakeTracker("broken", 1), FakeTracker("at the end", -1)]
    log._trackers = list(trackers)
    for step in range(3):
        log.write({"step": step, "text": "no number"})
    log.close()
    assert [tracker.steps for tracker in trackers] == [[0, 1, 2, -1], [0], [0, 1, 2]]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 2 and "broken logs no further" in warnings[0] and "at the end did not take" in warnings[1]
    assert len(rows(tmp_path)) == 3


def test_a_tracker_that_cannot_be_opened_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, or a package of another version."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    log = MetricsLog(tmp_path, LoggingConfig(tensorboard=False, wandb=TrackerMode.offline), 0)
    log.write({"step": 0})
    assert "WARNING W&B does not log this run" in capsys.readouterr().err and len(rows(tmp_path)) == 1


def test_wandb_without_its_server_is_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same id, so that `wandb sync` sends it where it belongs."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> Any:
        calls.append(arguments)
        if arguments["mode"] == "online":
            raise ConnectionError("no network")
        return SimpleNamespace(log=lambda numbers, step: calls.append({"step": step, **numbers}))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    log = MetricsLog(tmp_path, LoggingConfig(tensorboard=False, wandb=TrackerMode.online), 0)
    log.write({"loss": 0.5})
    online, offline, logged = calls
    assert (online["mode"], offline["mode"], logged) == ("online", "offline", {"step": 0, "loss": 0.5})
    assert online["id"] == offline["id"] == (tmp_path / "wandb_id").read_text()
    assert "`wandb sync`" in capsys.readouterr().err


class FakeMlflow:
    """MLflow's client of one address, with the signatures of mlflow-skinny 3.17. `down` has the addresses that fail."""

    down: ClassVar[set[str]] = set()
    logged: ClassVar[list[tuple[str, str, int, dict[str, float]]]] = []

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        self.uri = str(tracking_uri).split(":")[0]

    def _answer(self) -> None:
        if self.uri in self.down:
            raise ConnectionError(f"{self.uri} is down")

    def get_experiment_by_name(self, name: str) -> Any:
        self._answer()

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment_id: str, run_name: str | None = None) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment_id}/{run_name}"))

    def update_run(self, run_id: str, status: str | None = None) -> None:
        self._answer()

    def log_batch(self, run_id: str, metrics: Sequence[Any] = ()) -> None:
        self._answer()
        self.logged.append((self.uri, run_id, metrics[0].step, {metric.key: metric.value for metric in metrics}))

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        self._answer()
        return [
            SimpleNamespace(step=step) for uri, _, step, numbers in self.logged if uri == self.uri and key in numbers
        ]

    def set_terminated(self, run_id: str) -> None: ...


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> type[FakeMlflow]:
    def metric(key: str, value: float, timestamp: int, step: int) -> Any:
        return SimpleNamespace(key=key, value=value, step=step)

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=FakeMlflow))
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=metric))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", SimpleNamespace(MlflowException=LookupError))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    FakeMlflow.down, FakeMlflow.logged = set(), []
    return FakeMlflow


def mlflow_log(directory: Path, lines: int = 0) -> MetricsLog:
    config = LoggingConfig(tensorboard=False, mlflow=TrackerMode.online, mlflow_experiment="project")
    return MetricsLog(directory, config, lines)


def test_mlflow_gets_every_number_under_a_name_that_it_allows(tmp_path: Path, mlflow: type[FakeMlflow]) -> None:
    (run_dir := tmp_path / "demo").mkdir()
    log = mlflow_log(run_dir)
    log.write({"iteration": 1, "evaluation/unlabeled/avg@8": 0.5, "stage": "train", "loss": math.nan})
    mlflow_log(run_dir, 1).write({"iteration": 2, "loss": 1})
    assert mlflow.logged == [
        ("http", "project/demo", 0, {"iteration": 1.0, "evaluation/unlabeled/avg_at_8": 0.5}),
        ("http", "project/demo", 1, {"iteration": 2.0, "loss": 1.0}),
    ]


@pytest.mark.parametrize(
    ("name", "logged"),
    [
        ("evaluation/held_out/AIME (2024)/avg@8", "evaluation/held_out/AIME _2024_/avg_at_8"),
        ("evaluation/held_out/a+b/avg@8", "evaluation/held_out/a_b/avg_at_8"),
        ("evaluation/held_out/../avg@8", "evaluation/held_out/_/avg_at_8"),
        ("evaluation/held_out//x/./avg@8", "evaluation/held_out/_/x/_/avg_at_8"),
        ("evaluation/held_out/v1.2: a-b/avg@8", "evaluation/held_out/v1.2: a-b/avg_at_8"),
    ],
)
def test_mlflow_takes_metrics_of_sources_with_any_name(name: str, logged: str) -> None:
    """MLflow refuses the whole line for one name that it does not allow."""
    assert mlflow_name(name) == logged


def test_mlflow_without_an_address_says_so(
    tmp_path: Path, mlflow: type[FakeMlflow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow_log(tmp_path).write({"iteration": 1})
    assert (
        "WARNING MLFLOW_TRACKING_URI, the address of MLflow's server, is not set: this run" in capsys.readouterr().err
    )
    assert [uri for uri, *_ in mlflow.logged] == ["sqlite"]


def test_mlflow_without_its_server_has_the_whole_run_in_the_run_directory(
    tmp_path: Path, mlflow: type[FakeMlflow], capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is absent at a start, or stops to answer in between. A start that reaches it sends the rest."""
    (run_dir := tmp_path / "demo").mkdir()
    log = mlflow_log(run_dir)
    log.write({"iteration": 1})
    mlflow.down = {"http"}
    for iteration in (2, 3):
        log.write({"iteration": iteration})
    mlflow_log(run_dir, 3).write({"iteration": 4})

    def steps(uri: str) -> list[tuple[int, float]]:
        return [(step, numbers["iteration"]) for store, _, step, numbers in mlflow.logged if store == uri]

    assert steps("sqlite") == [(0, 1), (1, 2), (2, 3), (3, 4)] and steps("http") == [(0, 1)]
    assert capsys.readouterr().err.count("WARNING MLflow does not answer") == 2
    mlflow.down = set()
    mlflow_log(run_dir, 4).write({"iteration": 5})
    assert steps("http") == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)] and len(steps("sqlite")) == 4
