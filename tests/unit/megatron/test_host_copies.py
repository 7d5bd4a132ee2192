"""How much host memory the copies of an asynchronous save take on each rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.megatron.checkpointing.dist_checkpoint import host_copy_bytes

DENSE, EXPERT = 10 * 2, 6 * 2
"""Bytes of the weights in bf16."""


@pytest.mark.parametrize(
    ("ranks", "weights"),
    [
        ({}, DENSE + EXPERT),
        ({"data_rank": 1}, EXPERT),
        ({"context_rank": 1}, EXPERT),
        ({"expert_data_rank": 1}, DENSE),
        ({"data_rank": 1, "expert_data_rank": 1}, 0),
    ],
)
def test_the_first_rank_that_holds_a_parameter_copies_it(ranks: dict[str, int], weights: int) -> None:
    """Under expert parallelism the second rank of data is the first one that holds its experts. Protects the budget of
    host memory from copies that no rank counts. An optimizer adds fp32 weights and two moments."""
    attention, expert = (torch.nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for size in (10, 6))
    expert.allreduce = False  # type: ignore[attr-defined]
    chunks = [SimpleNamespace(parameters=lambda: [attention]), SimpleNamespace(parameters=lambda: [expert])]
    place = SimpleNamespace(**{"data_rank": 0, "context_rank": 0, "expert_data_rank": 0} | ranks)
    model: Any = SimpleNamespace(topology=place, chunks=chunks, optimizer=None, is_saved_elsewhere=False)
    assert host_copy_bytes(model) == weights
    model.optimizer = object()
    assert host_copy_bytes(model) == weights * 7
    model.is_saved_elsewhere = True
    assert host_copy_bytes(model) == 0
