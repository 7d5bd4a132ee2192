"""The output layer's logits in fp32, and log-probs of tokens. Neither has a gradient; `log_probs.token_scores` does."""

from __future__ import annotations

import torch
from torch import Tensor

from tempo_megatron.kernels import vllm_kernels
from tempo_megatron.kernels.products import ordered_product


def fp32_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Returns hidden [rows, width] times weight [entries, width] as fp32 [rows, entries]."""
    if hidden.is_cuda:
        return ordered_product(hidden, weight, torch.float32)
    return hidden.float() @ weight.float().t()


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns (z_y - max z) - log sum exp(z - max z) of logits [rows, entries] fp32 and their tokens y [rows]."""
    if logits.is_cuda:
        return vllm_kernels.launch_token_log_probs(logits, tokens)
    peak = logits.amax(1)
    normalizer = (logits - peak[:, None]).exp().sum(1)
    return logits.gather(1, tokens[:, None])[:, 0] - peak - normalizer.log()
