"""Products whose bits do not depend on the number of rows, in so far as they run without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tempo_megatron.kernels import products, vllm_kernels


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 15, 300])
@pytest.mark.parametrize("keeps_order", [True, False])
def test_products_of_few_rows_never_reach_cublas(rows: int, keeps_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows would select another algorithm, with another order of sums. The rows that fill up must not come back."""
    rows_of_products = []

    def cublas(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        rows_of_products.append(len(inputs))
        return inputs @ weight.t()

    monkeypatch.setattr(products, "cublas_product", cublas)
    monkeypatch.setattr(products, "_cublas_keeps_order", lambda *shape: keeps_order)
    monkeypatch.setattr(vllm_kernels, "product", lambda inputs, weight, dtype: inputs @ weight.t())
    inputs, weight = normal(rows, 6), normal(4, 6)
    torch.testing.assert_close(products.ordered_product(inputs, weight, torch.float64), inputs @ weight.t())
    assert rows_of_products == ([max(256, rows)] if keeps_order else [])


@pytest.mark.parametrize(("differing", "expected"), [(None, True), (256, False), (304, False), (2048, False)])
def test_one_number_of_rows_with_another_order_refuses_the_faster_product(
    differing: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an H200 a weight of Qwen3-8B differs at 256 rows and not at 192 or 264."""

    def product(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return products.cublas_product(inputs, weight, dtype) + (len(inputs) == differing)

    monkeypatch.setattr(vllm_kernels, "product", product)
    device = torch.device("cpu")
    assert products._cublas_keeps_order.__wrapped__(4, 6, torch.float32, torch.float32, device) is expected
