"""Matrix products whose entries have the same bits for any number of rows, so that decoding and training agree.

cuBLAS computes them. For some weights and few rows it takes other algorithms, whose sums have another order. A test at
a weight's first use says for which numbers of rows, and rows of zeros then fill the inputs up.
"""

from __future__ import annotations

import functools
from bisect import bisect_left

import torch
from torch import Tensor
from torch.nn.functional import pad

from tempo_megatron.kernels import vllm_kernels

_DECODING_ROWS = (1, 2, 4, *range(8, 513, 8))
"""The rows of vLLM's CUDA graphs are among these. Other small inputs are filled up to one of them."""
_LARGE_ROWS = (768, 1024, 2048)
"""Inputs of more than 512 rows are not filled up. cuBLAS computes them all, or none."""
_TESTED_LOGITS = 2**27
"""The number of entries of a result up to which more than 512 rows are tested. Larger ones are not computed at once."""


def ordered_product(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns inputs [rows, width] times weight [entries, width], both bf16 on a GPU, as [rows, entries] of `dtype`.

    Each entry is a sum in fp32, in the order of the width. The first call for a weight's shape tests which numbers of
    rows have this order; it must not be captured in a CUDA graph.
    """
    rows = len(inputs)
    filled = _filled_rows(rows, ordered_rows(*weight.shape, inputs.dtype, dtype, weight.device))
    if not filled:
        return vllm_kernels.product(inputs, weight, dtype)
    if filled > rows:
        inputs = pad(inputs, (0, 0, 0, filled - rows))
    return cublas_product(inputs, weight, dtype)[:rows]


def cublas_product(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the same as `ordered_product`, with sums in an order that may depend on the number of rows."""
    if dtype is inputs.dtype:
        return torch.mm(inputs, weight.t())
    return torch.mm(inputs, weight.t(), out_dtype=dtype)


def _filled_rows(rows: int, ordered: tuple[int, ...]) -> int:
    """Returns to how many rows an input is filled up, or 0 if cuBLAS has another order at every such number."""
    if rows > _DECODING_ROWS[-1]:
        return rows if _LARGE_ROWS[0] in ordered else 0
    place = bisect_left(ordered, rows)
    return ordered[place] if place < len(ordered) and ordered[place] <= _DECODING_ROWS[-1] else 0


@functools.cache
def ordered_rows(
    entries: int, width: int, dtype: torch.dtype, result_dtype: torch.dtype, device: torch.device
) -> tuple[int, ...]:
    """Returns the tested numbers of rows for which cuBLAS has the bits of vLLM's batch-invariant product, ascending.

    The large ones are all among them, or none is. The second half of the width cancels the first, so that an entry is
    nothing but the rounding of its sum: another order shows in almost all of them.
    """
    generator = torch.Generator(device).manual_seed(0)

    def halves(rows: int, sign: int) -> Tensor:
        half = torch.randn(rows, width // 2, generator=generator, device=device, dtype=dtype)
        return torch.cat([half, sign * half, half.new_zeros(rows, width % 2)], 1)

    large = [rows for rows in _LARGE_ROWS if rows * entries <= _TESTED_LOGITS]
    weight, inputs = halves(entries, 1), halves(max([_DECODING_ROWS[-1], *large]), -1)
    expected = vllm_kernels.product(inputs, weight, result_dtype)

    def has_order(rows: int) -> bool:
        return torch.equal(cublas_product(inputs[:rows], weight, result_dtype), expected[:rows])

    small = [rows for rows in _DECODING_ROWS if has_order(rows)]
    return (*small, *(_LARGE_ROWS if all(map(has_order, large)) else ()))
