"""TensorBoard, Weights & Biases and MLflow as writers of metrics.

None of them may fail a run: metrics.jsonl has every metric. Where a server does not answer, W&B and MLflow write into
the run directory, from where their own tools copy it to the server later.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tempo_megatron.config import LoggingConfig, TrackerMode
from tempo_megatron.utils.atomic_files import write_text_atomically
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

_ANSWER_SECONDS = "10"
_RETRIES = "2"
"""MLflow waits for minutes by default, in which every rank waits for the first."""
_MLFLOW_BATCH = 1000
"""The largest number of metrics of one of MLflow's requests."""


class Tracker(Protocol):
    """A writer of metrics. Its methods may raise whatever they like."""

    name: str

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def open_trackers(run_dir: Path, config: LoggingConfig, lines: int) -> list[Tracker]:
    """Return the writers that the settings ask for. One that cannot be opened is a warning.

    `lines` is the number of lines of metrics.jsonl, which are the steps that the run has logged.
    """
    makers: dict[str, Any] = {}
    if config.tensorboard:
        makers["TensorBoard"] = lambda: TensorBoard(run_dir, lines)
    if config.wandb is not TrackerMode.disabled:
        makers["W&B"] = lambda: Wandb(run_dir, config)
    if config.mlflow is not TrackerMode.disabled:
        makers["MLflow"] = lambda: Mlflow(run_dir, config, lines)
    trackers = []
    for name, make in makers.items():
        try:
            trackers.append(make())
        except Exception as error:
            logger.warning(f"{name} does not log this run: {error!r}. metrics.jsonl has every metric")
    return trackers


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


class TensorBoard:
    """TensorBoard's events in `tensorboard/`."""

    name = "TensorBoard"

    def __init__(self, run_dir: Path, lines: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=lines)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases. Without its server it is an offline run in `wandb/` for `wandb sync`."""

    name = "W&B"

    def __init__(self, run_dir: Path, config: LoggingConfig) -> None:
        try:
            self._run = _wandb_run(run_dir, config.wandb_project, config.wandb)
        except Exception as error:
            if config.wandb is TrackerMode.offline:
                raise
            logger.warning(f"W&B does not answer ({error!r}): this run is logged offline; send it with `wandb sync`")
            self._run = _wandb_run(run_dir, config.wandb_project, TrackerMode.offline)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_run(run_dir: Path, project: str, mode: TrackerMode) -> Any:
    import wandb

    return wandb.init(
        project=project,
        name=run_dir.name,
        dir=run_dir,
        id=_kept_id(run_dir / "wandb_id"),
        resume="allow",
        mode=mode.value,  # type: ignore[arg-type]
    )


class Mlflow:
    """A run of MLflow on the server of MLFLOW_TRACKING_URI. Without it the run is in the database `mlflow.db`.

    Whichever is opened gets the lines of metrics.jsonl that it lacks, so that it has the whole run.
    """

    name = "MLflow"

    def __init__(self, run_dir: Path, config: LoggingConfig, lines: int) -> None:
        self._run_dir, self._experiment = run_dir, config.mlflow_experiment
        self._is_local = config.mlflow is TrackerMode.offline
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _ANSWER_SECONDS)
        if self._is_local:
            self._open_locally(lines)
            return
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            self._fall_back("MLFLOW_TRACKING_URI, the address of MLflow's server, is not set", lines)
            return
        try:
            self._open(uri, run_dir / "mlflow_id", lines)
        except Exception as error:
            self._fall_back(f"MLflow does not answer ({error!r})", lines)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        try:
            self._log(numbers, step)
        except Exception as error:
            if self._is_local:
                raise
            self._fall_back(f"MLflow does not answer ({error!r})", step)
            self._log(numbers, step)

    def close(self) -> None:
        self._client.set_terminated(self._run)

    def _fall_back(self, reason: str, lines: int) -> None:
        logger.warning(
            f"{reason}: this run is logged to {self._run_dir / 'mlflow.db'}; "
            "a later start sends it, if a server answers then"
        )
        self._is_local = True
        self._open_locally(lines)

    def _open_locally(self, lines: int) -> None:
        uri = f"sqlite:///{(self._run_dir / 'mlflow.db').resolve()}"
        self._open(uri, self._run_dir / "mlflow_local_id", lines)

    def _open(self, uri: str, id_path: Path, lines: int) -> None:
        """Open the run whose id is kept at `id_path`, or a new one, and send the lines of the log that it lacks."""
        self._open_run(uri, id_path)
        steps = {metric.step for metric in self._client.get_metric_history(self._run, "iteration")} if lines else set()
        for step, row in enumerate(islice(_rows(self._run_dir / "metrics.jsonl"), lines)):
            if step not in steps:
                self._log(numbers_of(row), step)

    def _open_run(self, uri: str, id_path: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(self._experiment)
        if id_path.exists():
            self._run = id_path.read_text()
            try:
                self._client.update_run(self._run, status="RUNNING")
                return
            except MlflowException as error:  # the server is another one, or its run was deleted
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
                    raise
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(experiment_id, run_name=self._run_dir.name).info.run_id
        write_text_atomically(id_path, self._run)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(mlflow_name(name), float(value), now, step)
            for name, value in numbers.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + _MLFLOW_BATCH])


def mlflow_name(name: str) -> str:
    """Return the name under which MLflow logs a metric.

    MLflow allows letters, digits and `_ - . : /` and spaces. A name must also be a normal path: no part of it is empty,
    `.` or `..`. Names of sources are free text.
    """
    allowed = re.sub(r"[^\w./ :-]", "_", name.replace("@", "_at_"))
    return "/".join("_" if part in ("", ".", "..") else part for part in allowed.split("/"))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)


def _kept_id(path: Path) -> str:
    """Return the id of a run directory's run. The directory keeps it, so that a resumed run continues the same one."""
    if not path.exists():
        write_text_atomically(path, uuid.uuid4().hex)
    return path.read_text()
