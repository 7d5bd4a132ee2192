"""The critic's value head is rescaled from one target range to the other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tempo_megatron.config import TargetRange
from tempo_megatron.megatron.model import ValueHead

RANGES = (TargetRange.zero_one, TargetRange.minus_one_one)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_critic_means_the_same_under_another_range_of_targets(dtype: torch.dtype, bias: bool) -> None:
    """A method with targets -1 and 1 starts from the critic of an RLVR run with 0 and 1. Every value keeps its meaning,
    and rescaling there and back is exact, because the factors are powers of 2."""
    config = SimpleNamespace(sequence_parallel=False, hidden_size=8, params_dtype=dtype)
    head = ValueHead(config, 0, bias)
    hidden = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(1))
    initial_values = head(hidden)[0]
    for trained, other in (RANGES, RANGES[::-1]):
        before = head(hidden)[0]
        head.rescale(*trained.to(other))
        expected = other.wrong + (1 - other.wrong) * (before - trained.wrong) / (1 - trained.wrong)
        torch.testing.assert_close(head(hidden)[0], expected)
        assert len(list(head.parameters())) == 2
        assert all(parameter.is_embedding_or_output_parameter for parameter in head.parameters())
    torch.testing.assert_close(head(hidden)[0], initial_values)
