"""Corrections for tokens that another policy sampled than the one that learns.

Even with the same weights, the generator and the trainer compute different log-probs. Tokens of a partial rollout come
from earlier weights too. A correction compares, at each token that learns,

    rho_t = p_old(y_t | x, y_<t) / p_generator(y_t | x, y_<t),

where p_old is the trainer's policy before the update, and p_generator the policy that sampled this token. For a
response of T tokens, the kinds of ratio are

- "token": rho_t.
- "sequence": P = prod_t rho_t, the importance ratio of the whole response.
- "geometric_mean": P^(1/T), the ratio of a mean token, whatever the length; the sequence ratio of GSPO
  (arXiv 2507.18071), with the generator as the old policy.

docs/algorithms.md says when to use which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tempo_megatron.algorithms.policy_loss import kept_tokens


@dataclass(frozen=True)
class Correction:
    """Weights of tokens and tokens that are left out. Neither has a gradient."""

    weights: Float[Tensor, "rows sequence"]
    """The factor of each token's objective: 0 where the token is rejected, 1 outside the mask."""
    rejected: Bool[Tensor, "rows sequence"]
    """The tokens of the mask that are left out."""
    largest_ratios: dict[str, float]
    """The largest ratio by kind: of "token" always, and of each other kind that the correction reads.

    Ratios beyond float64 count as its maximum."""


def rollout_correction(
    old_log_probs: Float[Tensor, "rows sequence"],
    generator_log_probs: Float[Tensor, "rows sequence"],
    mask: Bool[Tensor, "rows sequence"],
    *,
    weight: str = "none",
    cap: float = 0.0,
    reject: str = "none",
    reject_below: float = 0.0,
    reject_above: float = 0.0,
) -> Correction:
    """Returns the correction of the tokens in the mask.

    `weight` is the kind of the ratio that weights a token, "none" for 1. `cap` truncates it: min(ratio, cap), which is
    truncated importance sampling (https://fengyao.notion.site/off-policy-rl). `reject` is the kind of the ratio that
    decides what is left out: a ratio outside [reject_below, reject_above] rejects its token, or its response for
    "sequence" and "geometric_mean". "any_token" rejects a response if any token's ratio is outside. 0 is no cap and no
    bound. Token weights without a cap and with the rejection "token" are the mask of IcePop (arXiv 2510.18855).
    """
    log_ratios = torch.where(mask, old_log_probs - generator_log_probs, 0.0).detach()
    weights = torch.ones_like(log_ratios) if weight == "none" else _log_ratio(log_ratios, mask, weight).exp()
    if cap:
        weights = weights.clamp_max(cap)
    rejected = _rejected(log_ratios, mask, reject, reject_below, reject_above)
    weights = torch.where(mask, torch.where(rejected, 0.0, weights), 1.0)
    kinds = {"token", weight, "token" if reject == "any_token" else reject} - {"none"}
    largest_ratios = {kind: _largest(_log_ratio(log_ratios, mask, kind), mask) for kind in sorted(kinds)}
    return Correction(weights, rejected, largest_ratios)


def correction_metrics(correction: Correction, mask: Bool[Tensor, "rows sequence"]) -> dict[str, float]:
    """Returns figures over the tokens of the mask and the rows that have one: the shares of rejected tokens and of rows
    that are rejected whole, the mean weight (rejected tokens count 0), and the largest ratios."""
    rows = mask.any(1)
    rejected_rows = rows & ~kept_tokens(mask, correction.rejected).any(1)
    return {
        "rejected_tokens": float(correction.rejected.sum() / mask.sum().clamp_min(1)),
        "rejected_sequences": float(rejected_rows.sum() / rows.sum().clamp_min(1)),
        "importance_weight_mean": float(correction.weights[mask].mean()) if rows.any() else 0.0,
        **{f"{kind}_ratio_max": ratio for kind, ratio in correction.largest_ratios.items()},
    }


def _log_ratio(
    log_ratios: Float[Tensor, "rows sequence"], mask: Bool[Tensor, "rows sequence"], kind: str
) -> Float[Tensor, "rows sequence"]:
    """Returns the logarithm of the ratio of this kind at each token. `log_ratios` of tokens are 0 outside the mask."""
    if kind == "token":
        return log_ratios
    total = log_ratios.sum(1, keepdim=True)
    if kind == "geometric_mean":
        total = total / mask.sum(1, keepdim=True).clamp_min(1)
    return total.expand_as(log_ratios)


def _rejected(
    log_ratios: Float[Tensor, "rows sequence"],
    mask: Bool[Tensor, "rows sequence"],
    reject: str,
    below: float,
    above: float,
) -> Bool[Tensor, "rows sequence"]:
    """Returns the tokens of the mask that are rejected."""
    if reject == "none":
        return torch.zeros_like(mask)
    ratios = _log_ratio(log_ratios, mask, "token" if reject == "any_token" else reject).exp()
    outside = mask & ((ratios < below) | (ratios > (above or torch.inf)))
    return mask & outside.any(1, keepdim=True) if reject == "any_token" else outside


def _largest(log_ratios: Float[Tensor, "rows sequence"], mask: Bool[Tensor, "rows sequence"]) -> float:
    """Returns the largest ratio in the mask, 0 if the mask is empty."""
    if not mask.any():
        return 0.0
    return float(log_ratios[mask].max().double().exp().clamp_max(torch.finfo(torch.float64).max))
