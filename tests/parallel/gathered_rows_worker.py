"""A rank of test_gathered_rows: the same columns on every rank, and one call of each collective for all of them.

usage: gathered_rows_worker.py PP
"""

from __future__ import annotations

import sys
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import ParallelConfig
from tempo_megatron.megatron.gathering import gather_rows
from tempo_megatron.megatron.topology import Topology, initialize

ROWS = 7


def columns_of(rows: Tensor) -> dict[str, Tensor]:
    """Return what a loss might report of these rows: three shapes, bf16 and booleans among fp32."""
    return {
        "values": torch.stack([rows / 3, -rows / 7], 1),
        "error": (rows / 11).bfloat16(),
        "by_head": (rows[:, None, None] + torch.arange(6, device=rows.device).view(2, 3)) % 2 == 0,
    }


def reports_of(topology: Topology) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return the reports of this rank's rows in reverse order, in micro-batches of two, one and no rows."""
    if not topology.is_last_stage:
        return []
    rows = torch.arange(topology.data_rank, ROWS, topology.data_size).flip(0)
    return [(part, columns_of(part.to(topology.device))) for part in (*rows.split(2), rows[:0])]


def main(pipeline_size: str) -> None:
    topology = initialize(ParallelConfig(pipeline_model_parallel_size=int(pipeline_size)), seed=0)
    torch.set_default_dtype(torch.bfloat16)  # The columns are fp32 whatever the process's default.
    with (
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce,
        mock.patch.object(dist, "broadcast", wraps=dist.broadcast) as broadcast,
    ):
        gathered = gather_rows(reports_of(topology), ROWS, topology)
    expected = {name: column.float() for name, column in columns_of(torch.arange(ROWS)).items()}
    assert list(gathered) == sorted(expected)
    for name, column in expected.items():
        assert torch.equal(gathered[name], column) and gathered[name].dtype == torch.float32, name
        assert gathered[name].is_contiguous(), name
    assert all_reduce.call_count == int(topology.is_last_stage and topology.data_size > 1)
    assert broadcast.call_count == int(topology.pipeline_size > 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
