"""The policy's loss: a clipped surrogate, a penalty for leaving a reference, a bonus for entropy.

All token columns are [rows, sequence]. Losses are sums of tokens with `token_weights`, to be divided by one global
`loss_count`. What they average over:

- "sequences": a mean over rows of means over their tokens. A token weighs 1 / (tokens of its row), which its action
  may decide: a baseline then biases the gradient (docs/algorithms.md).
- "tokens": a mean over all tokens that learn.
- "constant": a mean over rows of sums over their tokens, divided by the same number for all, as in Dr. GRPO
  (arXiv 2503.20783). Unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """`total` [] carries the gradient; the rest is detached, a value a row."""

    total: Tensor
    ratio: Tensor
    """[rows] the sequence ratio s, whichever ratio the loss clips"""
    clipped: Tensor
    """[rows] share of a row's tokens whose gradient the clip removed"""


def token_weights(mask: Tensor, average_over: str, dtype: torch.dtype) -> Tensor:
    """What a token counts in a sum: 1 / (tokens of its row) for "sequences", else 1; 0 off the mask."""
    if average_over == "sequences":
        return mask.to(dtype) / mask.sum(1).clamp_min(1)[:, None]
    return mask.to(dtype)


def loss_count(mask: Tensor, average_over: str, longest: int) -> int:
    """What a sum over the tokens of `mask` [rows, sequence], bool, is divided by.

    Rows with a token for "sequences", tokens for "tokens", rows with a token times `longest` for "constant". `longest`
    is the most tokens that a response may have.
    """
    if average_over == "tokens":
        return int(mask.sum())
    rows = int(mask.any(1).sum())
    return rows * longest if average_over == "constant" else rows


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: str,
    clip_range_low: float,
    clip_range_high: float,
    dual_clip: float = 0.0,
    average_over: str = "sequences",
    importance: Tensor | None = None,
) -> PolicyLoss:
    """-sum_t w_t min(r_t A_t, clip(r_t, 1 - clip_range_low, 1 + clip_range_high) A_t).

    ratio "token" is PPO (arXiv 1707.06347): r_t = p_t / p_t^old. ratio "sequence" is GSPO-token (arXiv 2507.18071): one
    number a row, s = exp(mean_t(log p_t - log p_t^old)), which token t sees as sg(s) p_t / sg(p_t): equal to s in
    value, with a gradient through the token's own log-probability, so that every token keeps its own credit.

    `dual_clip` c > 1 bounds the objective of a negative advantage below by c A_t (arXiv 1912.09729); 0 is off.
    `importance` weights tokens (`truncated_importance`). A row with an empty mask contributes exactly 0, ratio 1 and
    clipped 0.
    """
    difference = torch.where(mask, log_probs - old_log_probs, 0.0)
    mean_over = token_weights(mask, "sequences", log_probs.dtype)
    sequence_ratio = (difference.detach() * mean_over).sum(1).exp()
    if ratio == "sequence":
        seen = sequence_ratio[:, None] * torch.where(mask, log_probs - log_probs.detach(), 0.0).exp()
    else:
        seen = difference.exp()
    unclipped = seen * advantages
    objective = torch.minimum(unclipped, seen.clamp(1 - clip_range_low, 1 + clip_range_high) * advantages)
    removed = objective < unclipped
    if dual_clip:
        floor = dual_clip * advantages
        removed = removed | ((advantages < 0) & (objective < floor))
        objective = torch.where(advantages < 0, torch.maximum(objective, floor), objective)
    if importance is not None:
        objective = objective * importance
    total = -(objective * token_weights(mask, average_over, log_probs.dtype)).sum()
    clipped = ((removed & mask) * mean_over).sum(1)
    return PolicyLoss(total, sequence_ratio, clipped.detach())


def truncated_importance(old_log_probs: Tensor, generator_log_probs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(p_old / p_generator, cap) a token: corrects for a generator that is not quite the policy, bounded so
    that no token dominates. No gradient; 1 off the mask."""
    difference = torch.where(mask, old_log_probs - generator_log_probs, 0.0)
    return difference.exp().clamp_max(cap).detach()


def kl_to_reference(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, average_over: str) -> Tensor:
    """KL(policy || reference) by the low-variance, non-negative estimate r - 1 - log r with r = p_reference / p
    (http://joschu.net/blog/kl-approx.html): weighted sums, [rows]."""
    difference = torch.where(mask, reference_log_probs - log_probs, 0.0)
    estimate = difference.exp() - 1 - difference
    return (estimate * token_weights(mask, average_over, log_probs.dtype)).sum(1)


def entropy_bonus(entropy: Tensor, mask: Tensor, average_over: str) -> Tensor:
    """Entropy of the policy at each token, summed with the tokens' weights."""
    return (torch.where(mask, entropy, 0.0) * token_weights(mask, average_over, entropy.dtype)).sum()
