"""RMS normalization (arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels import vllm_kernels
from tempo_megatron.kernels.compilation import compiled_on_gpus, widened


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Returns weight * x / sqrt(mean(x^2) + epsilon) of inputs [..., width], in their dtype; weight [width].

    Sums and products are in fp32 and rounded once.
    """
    normalized: Tensor = _RmsNorm.apply(inputs, weight, epsilon)
    return normalized


def rms_norm_forward(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Returns the same as `rms_norm`, without a gradient."""
    if inputs.is_cuda:
        return vllm_kernels.launch_rms_norm(inputs, weight, epsilon)
    wide = widened(inputs)
    inverse = 1.0 / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return (wide * inverse * widened(weight)).to(inputs.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.epsilon = epsilon
        return rms_norm_forward(inputs, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        inputs, weight = ctx.saved_tensors
        width = inputs.shape[-1]
        for_inputs, for_weight = _gradients(inputs.reshape(-1, width), weight, gradient.reshape(-1, width), ctx.epsilon)
        return for_inputs.view(inputs.shape), for_weight, None


@compiled_on_gpus
def _gradients(inputs: Tensor, weight: Tensor, gradient: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns the gradients of inputs [rows, width] and weight [width].

    Let r = 1 / sqrt(mean(x^2) + epsilon), n = r x and h = g * weight. Then x has the gradient r (h - n mean(h n)), and
    the weight the sum of g n over rows.
    """
    wide, upstream = widened(inputs), widened(gradient)
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    normalized = wide * inverse
    weighted = upstream * widened(weight)
    for_inputs = inverse * (weighted - normalized * (weighted * normalized).mean(-1, keepdim=True))
    return for_inputs.to(inputs.dtype), (upstream * normalized).sum(0).to(weight.dtype)
