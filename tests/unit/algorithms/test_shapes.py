"""Shapes in signatures are checked while tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from tempo_megatron.algorithms.advantages import value_baseline_advantages


@pytest.mark.parametrize(
    ("rewards", "values"),
    [
        (torch.zeros(3), torch.zeros(2, 4)),
        (torch.zeros(2), torch.zeros(2, 5)),
        (torch.zeros(2), torch.zeros(2, 4, dtype=torch.int64)),
    ],
)
def test_a_tensor_of_another_shape_or_dtype_is_an_error(rewards: torch.Tensor, values: torch.Tensor) -> None:
    """Without the check, a wrong number of rows would broadcast or fail far from its cause."""
    with pytest.raises(TypeCheckError):
        value_baseline_advantages(rewards, values, torch.ones(2, 4, dtype=torch.bool))
