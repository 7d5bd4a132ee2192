"""On CPUs a row of a product does not depend on the other rows, so a response depends on its request alone."""

from __future__ import annotations

import pytest
import torch

from tempo_megatron.generation.row_invariance import linear


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (33, 127), (576, 192)])
def test_a_row_is_the_same_among_any_others_and_at_any_place(inputs: int, outputs: int) -> None:
    random = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=random)
    rows = torch.randn(70, inputs, generator=random)
    expected = linear(rows, weight)
    for count in (1, 2, 15, 16, 17, 40, 70):
        chosen = torch.randperm(70, generator=random)[:count]
        assert torch.equal(linear(rows[chosen], weight), expected[chosen])


def test_it_is_a_linear_layer() -> None:
    random = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(shape, generator=random) for shape in ((2, 9, 24), (7, 24), (7,)))
    exact = rows.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(linear(rows, weight, bias).double(), exact, rtol=0, atol=1e-5)
    assert linear(rows[:, :0], weight, bias).shape == (2, 0, 7)
