"""The Triton kernels, run on the CPU by Triton's interpreter, against the formulas that they compute.

`test_triton_kernels` runs these tests in a process of their own, in which Triton interprets.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from tempo_megatron.kernels import norm, swiglu


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as on a device of two processors."""
    from tempo_megatron.kernels import triton_kernels

    monkeypatch.setattr(triton_kernels, "_processors", lambda device: 2)
    return triton_kernels


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads(name: str) -> Tensor:
    """Inputs of norms: whole rows, and the heads that generator and trainer cut out of a product."""
    product = normal(5, 8 * 16)
    return {
        "rows": normal(5, 1, 96),
        "the generator's queries": product[:, :64].view(5, 4, 16),
        "the trainer's keys": product.view(5, 1, 2, 64)[..., 32:48],
        "one head": product[:, 48:64].view(5, 1, 16),
        "columns of wider rows": product[:, :96],
        "transposed heads": normal(4, 5, 16).transpose(0, 1),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["rows", "the generator's queries", "the trainer's keys", "one head", "columns of wider rows", "transposed heads"],
)
def test_a_norm_reads_heads_where_they_lie(name: str, kernels: ModuleType) -> None:
    """A stride that is read wrongly would normalize parts of other heads."""
    inputs = heads(name)
    weight = 1 + normal(inputs.shape[-1], seed=1)
    output, inverse, total = kernels.rms_norm(inputs, weight, 1e-5)
    expected = norm.rms_norm_forward(inputs, weight, 1e-5)
    torch.testing.assert_close((output, inverse, total), expected)
    assert output.is_contiguous()


def test_a_norm_after_a_residual_is_that_of_the_sum(kernels: ModuleType) -> None:
    """The trainer adds, and then its norm reads the sum. The interpreter does not round to bf16 as a GPU does."""
    inputs, residual, weight = normal(6, 96), normal(6, 96, seed=1), 1 + normal(96, seed=2)
    output, inverse, total = kernels.rms_norm(inputs, weight, 1e-5, residual)
    assert torch.equal(total, inputs + residual)
    without_residual = kernels.rms_norm(total, weight, 1e-5)
    assert torch.equal(output, without_residual[0]) and torch.equal(inverse, without_residual[1])


@pytest.mark.parametrize(("rows", "width"), [(37, 128), (5, 2048), (19, 96)])
def test_gradients_of_norms(rows: int, width: int, kernels: ModuleType) -> None:
    """Rows that fill no tile, and columns that fill no power of two, must not enter the sums."""
    inputs, weight, gradient = normal(rows, width), 1 + normal(width, seed=1), normal(rows, width, seed=2)
    inverse = torch.rsqrt(inputs.square().mean(-1, keepdim=True) + 1e-5)
    actual = kernels.rms_norm_gradients(inputs, weight, inverse, gradient)
    torch.testing.assert_close(actual, norm._gradients(inputs, weight, inverse, gradient), rtol=1e-5, atol=1e-5)


def test_gradient_of_swiglu(kernels: ModuleType) -> None:
    """Gate and up lie side by side, in more columns than one program computes."""
    gate_and_up, gradient = normal(3, 2 * 1500), normal(3, 1500, seed=1)
    actual = kernels.swiglu_gradient(gate_and_up, gradient)
    torch.testing.assert_close(actual, swiglu._gradient(gate_and_up, gradient))
