"""Linear layers of vLLM on CPUs whose rows do not depend on the rows beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK_ROWS = 16
"""more rows cost a step of few sequences more; fewer cost a step of many more"""


def install() -> None:
    """Give vLLM's linear layers `linear` on a CPU whose oneDNN sums in an order that depends on the number of rows.

    That was seen with AVX2, in fp32: a response then depends on the requests that are generated with it. With AVX-512
    vLLM's own products keep each row as it is. To be called before an engine starts.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return
    from vllm.model_executor.layers import utils

    vllms_own = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: Any, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.dim() != 2:
            vllms_own(layer, remove_weight)
        else:
            layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = dispatch


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [..., in] times weight [out, in], plus bias [out]: [..., out].

    Rows are multiplied in blocks of one size, the last filled with zeros: one size of a product has one order of sums.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    filled = torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % _BLOCK_ROWS))
    blocks = filled.view(-1, _BLOCK_ROWS, rows.shape[-1])
    product = torch.bmm(blocks, weight.t().expand(len(blocks), -1, -1)).flatten(0, 1)[: len(flat)]
    if bias is not None:
        product = product + bias
    return product.view(*rows.shape[:-1], len(weight))
