"""The generator's parts under `numerics: exact`, in so far as they run without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tempo_megatron.generation import shared_kernels
from tempo_megatron.kernels import vllm_kernels


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 6), (3, 5, 6), (300, 6)])
@pytest.mark.parametrize("has_one_order", [True, False])
def test_products_of_few_rows_never_reach_cublas(
    shape: tuple[int, ...], has_one_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows would select another algorithm, with another order of sums. The rows that fill up must not come back."""
    rows_of_products = []

    def linear(inputs: Tensor, weight: Tensor) -> Tensor:
        rows_of_products.append(len(inputs))
        return inputs @ weight.t()

    monkeypatch.setattr(shared_kernels, "linear", linear)
    monkeypatch.setattr(shared_kernels, "_has_one_order", lambda *shape: has_one_order)
    monkeypatch.setattr(vllm_kernels, "product", lambda inputs, weight: inputs @ weight.t())
    inputs, weight = normal(*shape), normal(4, 6)
    product = shared_kernels._product(inputs, weight)
    torch.testing.assert_close(product, torch.einsum("...w,ew->...e", inputs, weight))
    assert rows_of_products == ([max(256, inputs.numel() // 6)] if has_one_order else [])


@pytest.mark.parametrize(("differing", "expected"), [(None, True), (256, False), (304, False), (2048, False)])
def test_one_number_of_rows_with_another_order_refuses_the_faster_product(
    differing: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an H200 a weight of Qwen3-8B differs at 256 rows and not at 192 or 264."""

    def product(inputs: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(inputs, weight) + (len(inputs) == differing)

    monkeypatch.setattr(vllm_kernels, "product", product)
    shared_kernels._has_one_order.cache_clear()
    assert shared_kernels._has_one_order(4, 6, torch.float32, torch.device("cpu")) is expected
    shared_kernels._has_one_order.cache_clear()
