"""Writers of metrics: metrics.jsonl always, TensorBoard and Weights & Biases by the settings."""

from __future__ import annotations

import json
import os
import uuid
from itertools import islice
from pathlib import Path
from typing import Any

from tempo_megatron.config import LoggingConfig, WandbMode
from tempo_megatron.utils.atomic_files import write_text_atomically
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)


class MetricsLog:
    """The writers of a run directory, which one rank has. A checkpoint keeps `lines`, the length of the log, so that a
    resumed run can cut the log back to it."""

    def __init__(self, run_dir: Path, config: LoggingConfig, lines: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        _cut(self.path, lines)
        self.lines = lines
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=lines)
        if config.wandb is not WandbMode.disabled:
            import wandb

            self._wandb = wandb.init(
                project=config.wandb_project,
                name=run_dir.name,
                dir=run_dir,
                id=_wandb_id(run_dir),
                resume="allow",
                mode=config.wandb.value,  # type: ignore[arg-type]
            )

    @expect_pace(Pace.untimed)
    def write(self, row: dict[str, Any]) -> None:
        """Writes a line of metrics.jsonl, and its numbers to the other writers with the line's number as step.

        The line is on the disk when this returns, since a checkpoint that counts it may outlive the node.
        """
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        if self._tensorboard:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, self.lines)
            self._tensorboard.flush()
        if self._wandb:
            self._wandb.log(numbers, step=self.lines)
        self.lines += 1

    def close(self) -> None:
        """Closes the other writers. Their errors are warnings, because metrics.jsonl has every metric."""
        for name, close in (
            ("TensorBoard", self._tensorboard and self._tensorboard.close),
            ("W&B", self._wandb and self._wandb.finish),
        ):
            if not close:
                continue
            try:
                close()
            except Exception as error:  # trackers raise what they like
                logger.warning(f"{name} did not take the end of the run: {error!r}")


def _cut(path: Path, lines: int) -> None:
    """Cuts a log back to its first lines in place, so that a process killed meanwhile loses none of them."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(sum(map(len, islice(file, lines))))


def _wandb_id(run_dir: Path) -> str:
    """Returns the W&B run of a run directory. The directory keeps it, so that a resumed run continues the same one."""
    path = run_dir / "wandb_id"
    if not path.exists():
        write_text_atomically(path, uuid.uuid4().hex)
    return path.read_text()
