"""The policy's loss: a clipped surrogate, a KL penalty toward a reference policy, and an entropy bonus.

A loss is a sum over tokens, weighted by `token_weights`, which the caller divides by one global `loss_count`. The
setting `average_over` selects the average:

- "sequences": a mean over rows of the mean over each row's tokens. The weight of a token is 1 / (tokens of its row),
  which depends on the token itself, so that a baseline biases the gradient (docs/algorithms.md).
- "tokens": a mean over all tokens that learn.
- "constant": a mean over rows of the sum over each row's tokens, divided by the same constant for all rows, as in
  Dr. GRPO (arXiv 2503.20783). It is unbiased.

A token that `rollout_correction` rejects adds 0 to every term. The average still counts it, in the tokens of its row
and in `loss_count`. So rejecting a token changes the gradient of no other token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class SurrogateLoss:
    """The loss and statistics of its rows."""

    total: Float[Tensor, ""]
    """The weighted sum over tokens, which has the gradient."""
    ratio: Float[Tensor, " rows"]
    """The sequence ratio s, whichever ratio the loss clips. Without gradient."""
    clipped: Float[Tensor, " rows"]
    """The share of a row's tokens whose gradient the clip removed. Without gradient."""


def token_weights(
    mask: Bool[Tensor, "rows sequence"],
    average_over: str,
    dtype: torch.dtype,
    rejected: Bool[Tensor, "rows sequence"] | None = None,
) -> Float[Tensor, "rows sequence"]:
    """Returns the weight of each token: 1 / (tokens of its row) for "sequences", otherwise 1; 0 outside the mask and
    where a token is rejected. The tokens of a row include the rejected ones."""
    kept = kept_tokens(mask, rejected).to(dtype)
    if average_over == "sequences":
        return kept / mask.sum(1).clamp_min(1)[:, None]
    return kept


def kept_tokens(
    mask: Bool[Tensor, "rows sequence"], rejected: Bool[Tensor, "rows sequence"] | None
) -> Bool[Tensor, "rows sequence"]:
    """Returns the tokens of the mask that are not rejected; None rejects nothing."""
    return mask if rejected is None else mask & ~rejected


def loss_count(mask: Bool[Tensor, "rows sequence"], average_over: str, longest: int) -> int:
    """Returns the number that divides a sum over the tokens of `mask`.

    It is the number of rows with a token for "sequences", the number of tokens for "tokens", and the number of rows
    with a token times `longest` for "constant". `longest` is the maximum number of tokens in a response.
    """
    if average_over == "tokens":
        return int(mask.sum())
    rows = int(mask.any(1).sum())
    return rows * longest if average_over == "constant" else rows


def clipped_surrogate(
    log_probs: Float[Tensor, "rows sequence"],
    old_log_probs: Float[Tensor, "rows sequence"],
    advantages: Float[Tensor, "rows sequence"],
    mask: Bool[Tensor, "rows sequence"],
    *,
    ratio: str,
    clip_range_low: float,
    clip_range_high: float,
    dual_clip: float = 0.0,
    average_over: str = "sequences",
    importance: Float[Tensor, "rows sequence"] | None = None,
    rejected: Bool[Tensor, "rows sequence"] | None = None,
) -> SurrogateLoss:
    """Returns the loss -sum_t w_t min(r_t A_t, clip(r_t, 1 - clip_range_low, 1 + clip_range_high) A_t).

    The ratio "token" is PPO's (arXiv 1707.06347): r_t = p_t / p_t^old. The ratio "sequence" is that of GSPO-token
    (arXiv 2507.18071). It has one value per row, s = exp(mean_t(log p_t - log p_t^old)), and r_t = sg(s) p_t / sg(p_t),
    where sg stops the gradient. r_t equals s, and its gradient goes through the token's own log-probability alone, so
    every token keeps its own credit.

    `dual_clip` c > 1 bounds the objective of a negative advantage from below by c A_t (arXiv 1912.09729); 0 turns it
    off. A row with an empty mask contributes exactly 0 to the loss, ratio 1 and clipped 0.

    `importance` multiplies a token's objective after the clip, and `rejected` tokens add nothing
    (`rollout_correction`). The mean in s is over all tokens of the mask, rejected or not: it measures what the update
    did to the response, whatever the generator's log-probs were.
    """
    difference = torch.where(mask, log_probs - old_log_probs, 0.0)
    mean_weights = token_weights(mask, "sequences", log_probs.dtype)
    sequence_ratio = (difference.detach() * mean_weights).sum(1).exp()
    kept = kept_tokens(mask, rejected)
    if ratio == "sequence":
        token_ratio = sequence_ratio[:, None] * torch.where(kept, log_probs - log_probs.detach(), 0.0).exp()
    else:
        token_ratio = torch.where(kept, difference, 0.0).exp()
    unclipped = token_ratio * advantages
    objective = torch.minimum(unclipped, token_ratio.clamp(1 - clip_range_low, 1 + clip_range_high) * advantages)
    removed = objective < unclipped
    if dual_clip:
        floor = dual_clip * advantages
        removed = removed | ((advantages < 0) & (objective < floor))
        objective = torch.where(advantages < 0, torch.maximum(objective, floor), objective)
    if importance is not None:
        objective = objective * importance
    total = -(objective * token_weights(mask, average_over, log_probs.dtype, rejected)).sum()
    clipped = ((removed & kept) * mean_weights).sum(1)
    return SurrogateLoss(total, sequence_ratio, clipped.detach())


def kl_to_reference(
    log_probs: Float[Tensor, "rows sequence"],
    reference_log_probs: Float[Tensor, "rows sequence"],
    mask: Bool[Tensor, "rows sequence"],
    average_over: str,
    rejected: Bool[Tensor, "rows sequence"] | None = None,
) -> Float[Tensor, " rows"]:
    """Returns KL(policy || reference) as weighted sums over each row's tokens that are not rejected.

    The estimate r - 1 - log r with r = p_reference / p has low variance and is never negative
    (http://joschu.net/blog/kl-approx.html).
    """
    difference = torch.where(kept_tokens(mask, rejected), reference_log_probs - log_probs, 0.0)
    estimate = difference.exp() - 1 - difference
    return (estimate * token_weights(mask, average_over, log_probs.dtype, rejected)).sum(1)


def entropy_bonus(
    entropy: Float[Tensor, "rows sequence"],
    mask: Bool[Tensor, "rows sequence"],
    average_over: str,
    rejected: Bool[Tensor, "rows sequence"] | None = None,
) -> Float[Tensor, ""]:
    """Returns the weighted sum of the policy's entropy over the tokens that are not rejected."""
    kept = kept_tokens(mask, rejected)
    return (torch.where(kept, entropy, 0.0) * token_weights(mask, average_over, entropy.dtype, rejected)).sum()
