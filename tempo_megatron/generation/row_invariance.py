"""Makes each output row of vLLM's linear layers on CPUs independent of the other rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK_ROWS = 16
"""More rows slow down steps of few sequences, and fewer rows slow down steps of many."""


def install() -> None:
    """Replaces the product in vLLM's linear layers by `linear`, unless the CPU has AVX-512.

    With AVX2, in fp32, the summation order of oneDNN depends on the number of rows, so that a response depends on the
    other requests of its step. With AVX-512 vLLM's own products do not depend on it. Call it before an engine starts.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: Any, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.dim() != 2:
            original(layer, remove_weight)
        else:
            layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = dispatch


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns rows [..., in] times weight [out, in], plus bias [out]: [..., out].

    Rows are multiplied in blocks of one size, the last padded with zeros. A fixed size fixes the summation order.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    padded = torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % _BLOCK_ROWS))
    blocks = padded.view(-1, _BLOCK_ROWS, rows.shape[-1])
    product = torch.bmm(blocks, weight.t().expand(len(blocks), -1, -1)).flatten(0, 1)[: len(flat)]
    if bias is not None:
        product = product + bias
    return product.view(*rows.shape[:-1], len(weight))
