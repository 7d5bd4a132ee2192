"""Updates whose numbers are none are left out, and a run that makes nothing else stops."""

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
    """Looks at each update of one model before it is made.

    Every rank sees the same batch, rows and norm, and so decides alike. The batch of an update that is left out goes
    to `directory/MODEL-NUMBER.safetensors`, what was reported of it and all its columns included.
    """

    limit: int
    directory: Path
    in_a_row: int = 0

    def passes(self, model: str, batch: Batch, rows: Mapping[str, Tensor], norm: float) -> bool:
        """Whether the update may be made. Raises NonFiniteUpdates."""
        columns = {**batch.columns, **rows}
        wrong = [name for name, column in columns.items() if not torch.isfinite(column).all()]
        if math.isfinite(norm) and not wrong:
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        what = ", ".join([*wrong, *([] if math.isfinite(norm) else [f"gradient norm {norm}"])])
        if rank_and_ranks()[0] == 0:
            path = self._save(model, batch, rows)
            logger.warning(f"{model}: an update is left out, not finite: {what}; {path}")
        barrier()  # a rank that writes alone would seem to hang
        if self.in_a_row >= self.limit:
            raise NonFiniteUpdates(
                f"{model}: {self.in_a_row} updates in a row are not finite ({what}; faults.non_finite_updates); their "
                f"batches are in {self.directory}"
            )
        return False

    @expect_pace(Pace.untimed)
    def _save(self, model: str, batch: Batch, rows: Mapping[str, Tensor]) -> Path:
        """Beside those that are there already."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{model}-{1 + len(list(self.directory.glob(f'{model}-*')))}.safetensors"
        given = {"tokens": batch.tokens, "lengths": batch.lengths, "response_mask": batch.response_mask}
        reported = {f"reported.{name}": column for name, column in rows.items()}
        columns = {f"columns.{name}": column for name, column in batch.columns.items()}
        made = {name: tensor.contiguous().clone() for name, tensor in (given | columns | reported).items()}
        save_file(made, path)
        return path
