"""Where figures go: metrics.jsonl always, TensorBoard and Weights & Biases when asked."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from tempo_megatron.config import LoggingConfig, WandbMode


class MetricsLog:
    """Writers of a run directory; made on one rank. `lines` is what a checkpoint keeps, to cut the log back to it."""

    def __init__(self, run_dir: Path, config: LoggingConfig, lines: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        kept = self.path.read_text().splitlines(keepends=True)[:lines] if self.path.exists() else []
        self.path.write_text("".join(kept))
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

    def write(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl; numbers also to the other writers, at the line's number as step."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        if self._tensorboard:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, self.lines)
            self._tensorboard.flush()
        if self._wandb:
            self._wandb.log(numbers, step=self.lines)
        self.lines += 1

    def close(self) -> None:
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _wandb_id(run_dir: Path) -> str:
    """The W&B run of a run directory: made once and kept in it, so that a resumed run goes on in the same one."""
    path = run_dir / "wandb_id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()
