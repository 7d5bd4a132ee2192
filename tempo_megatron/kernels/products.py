"""Matrix products whose entries have the same bits for any number of rows, so that decoding and training agree.

cuBLAS computes them where a test at a weight's first use allows it. It takes other algorithms for few rows, whose sums
have another order.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from tempo_megatron.kernels import vllm_kernels

FEWEST_ROWS = 256
"""Rows of zeros fill smaller inputs up to this number. Bytes of the weight, not rows, bound so small a product."""
_TESTED_ROWS = (*range(FEWEST_ROWS, 513, 8), 768, 1024, 2048)
"""By default decoding has 512 rows at most, and CUDA graphs for multiples of 8 or 16. Prompts and training have
more."""
_TESTED_LOGITS = 2**27
"""The number of entries of a result up to which more than 512 rows are tested. Larger ones are not computed at once."""


def ordered_product(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns inputs [rows, width] times weight [entries, width], both bf16 on a GPU, as [rows, entries] of `dtype`.

    Each entry is a sum in fp32, in the order of the width. The first call for a weight's shape tests which kernel has
    this order; it must not be captured in a CUDA graph.
    """
    if not _cublas_keeps_order(*weight.shape, inputs.dtype, dtype, weight.device):
        return vllm_kernels.product(inputs, weight, dtype)
    rows = len(inputs)
    if rows < FEWEST_ROWS:
        inputs = pad(inputs, (0, 0, 0, FEWEST_ROWS - rows))
    return cublas_product(inputs, weight, dtype)[:rows]


def cublas_product(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the same as `ordered_product`, with sums in an order that may depend on the number of rows."""
    if dtype is inputs.dtype:
        return torch.mm(inputs, weight.t())
    return torch.mm(inputs, weight.t(), out_dtype=dtype)


@functools.cache
def _cublas_keeps_order(
    entries: int, width: int, dtype: torch.dtype, result_dtype: torch.dtype, device: torch.device
) -> bool:
    """Returns whether cuBLAS has the bits of vLLM's batch-invariant product for every number of rows that is tested.

    Another order of sums changes hundreds of a product's entries.
    """
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(entries, width, generator=generator, device=device, dtype=dtype)
    tested = [rows for rows in _TESTED_ROWS if rows <= 512 or rows * entries <= _TESTED_LOGITS]
    inputs = torch.randn(tested[-1], width, generator=generator, device=device, dtype=dtype)
    return all(
        torch.equal(
            cublas_product(inputs[:rows], weight, result_dtype),
            vllm_kernels.product(inputs[:rows], weight, result_dtype),
        )
        for rows in tested
    )
