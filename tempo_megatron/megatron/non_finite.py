"""Skips optimizer updates that are not finite, and stops a run that has too many of them in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tempo_megatron.megatron.batch import Batch
from tempo_megatron.utils.distributed import barrier, rank_and_ranks
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)


class NonFiniteUpdates(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


@dataclass
class NonFiniteGuard:
    """Checks each update of one model before it is applied.

    Every rank sees the same batch, rows and norm, so all ranks decide alike. The batch of a skipped update is saved as
    `directory/MODEL-NUMBER.safetensors`, with all its columns, its routes, and the tensors that the loss reported.
    """

    limit: int
    """The number of skipped updates in a row that raises NonFiniteUpdates."""
    directory: Path
    consecutive: int = 0
    """The number of updates skipped since the last finite one."""

    def passes(self, model: str, batch: Batch, rows: Mapping[str, Tensor], norm: float) -> bool:
        """Returns whether the update may be applied. Raises NonFiniteUpdates at the limit."""
        columns = {**batch.columns, **rows}
        non_finite = [name for name, column in columns.items() if not torch.isfinite(column).all()]
        if math.isfinite(norm) and not non_finite:
            self.consecutive = 0
            return True
        self.consecutive += 1
        listed = ", ".join([*non_finite, *([] if math.isfinite(norm) else [f"gradient norm {norm}"])])
        if rank_and_ranks()[0] == 0:
            path = self._save(model, batch, rows)
            logger.warning(f"{model}: an update is skipped, not finite: {listed}; {path}")
        barrier()  # A rank that writes alone would look like a hang.
        if self.consecutive >= self.limit:
            raise NonFiniteUpdates(
                f"{model}: {self.consecutive} updates in a row are not finite ({listed}; faults.non_finite_updates); "
                f"their batches are in {self.directory}"
            )
        return False

    @expect_pace(Pace.untimed)
    def _save(self, model: str, batch: Batch, rows: Mapping[str, Tensor]) -> Path:
        """Writes the batch under the next free number; returns the path."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{model}-{1 + len(list(self.directory.glob(f'{model}-*')))}.safetensors"
        inputs = {"tokens": batch.tokens, "lengths": batch.lengths, "response_mask": batch.response_mask}
        reported = {f"reported.{name}": column for name, column in rows.items()}
        columns = {f"columns.{name}": column for name, column in batch.columns.items()}
        routes = {f"routes.{row}": route for row, route in enumerate(batch.routes or ())}
        tensors = {name: tensor.contiguous().clone() for name, tensor in (inputs | columns | routes | reported).items()}
        save_file(tensors, path)
        return path
