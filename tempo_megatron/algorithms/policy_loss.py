"""GSPO (arXiv 2507.18071) with an advantage for every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """`total` [] is a sum over sequences, to be divided by one global count; the rest is detached, a value a row."""

    total: Tensor
    ratio: Tensor
    clipped: Tensor


def gspo(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """The clipped sequence-level objective in its token form, GSPO-token.

    The importance ratio is one number a sequence, s = exp(mean_t(log p_t - log p_t^old)). Token t sees it as
    s_t = sg(s) * p_t / sg(p_t): equal to s in value, with a gradient through token t's own log-probability, so that
    every token keeps its own credit. A row's loss is -mean_t min(s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t).

    All tensors are [rows, sequence]; a row with an empty mask contributes exactly 0, ratio 1 and clipped 0. `ratio`
    [rows] is s; `clipped` [rows] is the share of a row's tokens whose gradient the clip removed.
    """
    tokens = mask.sum(1)
    share = mask.to(log_probs.dtype) / tokens.clamp_min(1)[:, None]
    difference = torch.where(mask, log_probs - old_log_probs, 0.0)
    ratio = (difference * share).sum(1).detach().exp()
    token_ratio = ratio[:, None] * torch.where(mask, log_probs - log_probs.detach(), 0.0).exp()
    unclipped = token_ratio * advantages
    clipped = token_ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    objective = (torch.minimum(unclipped, clipped) * share).sum(1)
    removed = ((clipped < unclipped) & mask).to(share.dtype).mul(share).sum(1)
    return PolicyLoss(-objective.sum(), ratio, removed.detach())
