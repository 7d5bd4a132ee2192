"""RMS normalization (arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels.compilation import widened

_WIDE = 512
"""From this width on, torch's gradient is as exact as ours and starts sooner. For many narrow rows it rounds parts of
the weight's gradient."""


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Returns weight * x / sqrt(mean(x^2) + epsilon) of inputs [..., width], in their dtype; weight [width].

    Sums and products are in fp32 and rounded once.
    """
    normalized: Tensor = _RmsNorm.apply(inputs, weight, epsilon)
    return normalized


def rms_norm_forward(
    inputs: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same as `rms_norm`, without a gradient; 1 / sqrt(mean(x^2) + epsilon) in fp32, [..., 1]; and x.

    x is the rounded sum of inputs and `residual`, or the inputs themselves.
    """
    if inputs.is_cuda:
        from tempo_megatron.kernels import triton_kernels

        return triton_kernels.rms_norm(inputs, weight, epsilon, residual)
    total = inputs if residual is None else inputs + residual
    wide = widened(total)
    inverse = 1.0 / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return (wide * inverse * widened(weight)).to(inputs.dtype), inverse, total


class _RmsNorm(torch.autograd.Function):
    """Let r = 1 / sqrt(mean(x^2) + epsilon), n = r x and h = g * weight. Then x has the gradient r (h - n mean(h n)),
    and the weight the sum of g n over rows."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normalized, inverse, _ = rms_norm_forward(inputs, weight, epsilon)
        ctx.save_for_backward(inputs, weight, inverse)
        return normalized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        inputs, weight, inverse = ctx.saved_tensors
        width = inputs.shape[-1]
        if inputs.is_cuda and width >= _WIDE:
            for_inputs, for_weight = torch.ops.aten._fused_rms_norm_backward(
                gradient, inputs, [width], inverse, weight, [True, True]
            )
            return for_inputs, for_weight, None
        rows = (inputs.reshape(-1, width), weight, inverse.view(-1, 1), gradient.reshape(-1, width))
        if inputs.is_cuda:
            from tempo_megatron.kernels.triton_kernels import rms_norm_gradients

            for_inputs, for_weight = rms_norm_gradients(*rows)
        else:
            for_inputs, for_weight = _gradients(*rows)
        return for_inputs.view(inputs.shape), for_weight, None


def _gradients(inputs: Tensor, weight: Tensor, inverse: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of inputs [rows, width] and weight [width]."""
    upstream, normalized = widened(gradient), widened(inputs) * inverse
    weighted = upstream * widened(weight)
    for_inputs = inverse * (weighted - normalized * (weighted * normalized).mean(-1, keepdim=True))
    return for_inputs.to(inputs.dtype), (upstream * normalized).sum(0).to(weight.dtype)
