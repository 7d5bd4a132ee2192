"""Products whose bits do not depend on the number of rows, in so far as they run without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tempo_megatron.kernels import products, vllm_kernels

LARGE = (768, 1024, 2048)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ordered", "rows", "expected"),
    [
        ((1, 8, 16, *LARGE), 1, 1),
        ((1, 8, 16, *LARGE), 9, 16),
        ((136, 144, *LARGE), 3, 136),
        ((136, 144, *LARGE), 145, None),
        ((136, 144, *LARGE), 600, 600),
        ((136, 144), 600, None),
        ((), 5, None),
    ],
)
def test_products_reach_cublas_with_ordered_numbers_of_rows_alone(
    ordered: tuple[int, ...], rows: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other numbers would select another algorithm, with another order of sums. The rows that fill up must not come
    back."""
    rows_of_products = []

    def cublas(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        rows_of_products.append(len(inputs))
        return inputs @ weight.t()

    monkeypatch.setattr(products, "cublas_product", cublas)
    monkeypatch.setattr(products, "ordered_rows", lambda *shape: ordered)
    monkeypatch.setattr(vllm_kernels, "product", lambda inputs, weight, dtype: inputs @ weight.t())
    inputs, weight = normal(rows, 6), normal(4, 6)
    torch.testing.assert_close(products.ordered_product(inputs, weight, torch.float64), inputs @ weight.t())
    assert rows_of_products == ([expected] if expected else [])


def test_each_number_of_rows_is_tested_by_sums_that_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an H200 a weight of Qwen3-8B differs at 160 and 256 rows, not at 192 or 264. Two of 2,048 entries of ordinary
    data differ in one row, which a test could miss."""

    def ordered(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        product = inputs.new_zeros(len(inputs), len(weight))
        for column in range(inputs.shape[1]):
            product += torch.outer(inputs[:, column], weight[:, column])
        return product

    def cublas(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if len(inputs) not in (1, 256):
            return ordered(inputs, weight, dtype)
        half = inputs.shape[1] // 2
        return ordered(inputs[:, :half], weight[:, :half], dtype) + ordered(inputs[:, half:], weight[:, half:], dtype)

    monkeypatch.setattr(vllm_kernels, "product", ordered)
    monkeypatch.setattr(products, "cublas_product", cublas)
    shape = (3, 48, torch.float32, torch.float32, torch.device("cpu"))
    tested = products.ordered_rows.__wrapped__(*shape)
    assert set(products._DECODING_ROWS) - set(tested) == {1, 256} and tested[-3:] == LARGE
    monkeypatch.setattr(products, "cublas_product", lambda *case: cublas(*case) + (len(case[0]) == 1024))
    assert products.ordered_rows.__wrapped__(*shape)[-1] == 512
