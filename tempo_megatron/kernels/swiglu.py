"""SwiGLU (arXiv 2002.05202), rounded twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels import vllm_kernels
from tempo_megatron.kernels.compilation import widened


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Returns silu(gate) * up [..., width] of [..., 2 * width]. silu(gate) is rounded to the input's dtype first."""
    product: Tensor = _SwiGlu.apply(gate_and_up)
    return product


class _SwiGlu(torch.autograd.Function):
    """With s = sigmoid(gate), the gate has the gradient g up s (1 + gate (1 - s)), and up has g gate s."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        if gate_and_up.is_cuda:
            return vllm_kernels.silu_and_multiply(gate_and_up.contiguous())
        gate, up = gate_and_up.chunk(2, -1)
        wide = widened(gate)
        return (wide / (1 + (-wide).exp())).to(gate.dtype) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (gate_and_up,) = ctx.saved_tensors
        width = gradient.shape[-1]
        rows = (gate_and_up.reshape(-1, 2 * width), gradient.reshape(-1, width))
        if gate_and_up.is_cuda:
            from tempo_megatron.kernels.triton_kernels import swiglu_gradient

            return swiglu_gradient(*rows).view(gate_and_up.shape)
        return _gradient(*rows).view(gate_and_up.shape)


def _gradient(gate_and_up: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient of gate and up, [rows, 2 * width]."""
    gate, up = widened(gate_and_up).chunk(2, -1)
    upstream, sigmoid = widened(gradient), torch.sigmoid(gate)
    for_gate = upstream * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([for_gate, upstream * gate * sigmoid], -1).to(gate_and_up.dtype)
