"""The M-step: the policy learns from the advantages of its own rollouts.

`advantages.py` computes the advantages before; `algorithms/policy_loss.py` has the losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tempo_megatron.algorithms.policy_loss import (
    clipped_surrogate,
    entropy_bonus,
    kept_tokens,
    kl_to_reference,
    loss_count,
)
from tempo_megatron.algorithms.rollout_correction import correction_metrics
from tempo_megatron.config import PolicyConfig, PolicyLoss, ReplayedRoutes
from tempo_megatron.generation.routes import MissingRoutes
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import NamedTensors, Trainer
from tempo_megatron.training.phases.advantages import AdvantageBatch
from tempo_megatron.training.phases.scoring import Scores, mini_batches
from tempo_megatron.utils.distributed import broadcast_from_first


def m_step(
    policy: Trainer,
    step: AdvantageBatch,
    scores: Scores,
    config: PolicyConfig,
    seed: Sequence[object],
    *,
    max_response_tokens: int,
) -> dict[str, float]:
    """Train the policy in mini-batches; return metrics. Collective.

    A mini-batch without a token to learn from, or whose tokens are all rejected, makes no update. Raises MissingRoutes
    if routers shall replay routes (`policy.router_replay`) and a rollout has none.
    """
    if config.router_replay is not ReplayedRoutes.none and step.batch.routes is None:
        raise MissingRoutes("policy.router_replay: the policy learns from rollouts of which some have no routes")
    norms: list[float] = []
    updates: list[NamedTensors] = []
    skipped = rejected = 0
    row_indices = list(step.first_epoch)
    for epoch in range(1, config.epochs):
        row_indices += mini_batches(step.batch.rows, config.mini_batches, *seed, "m_step", epoch)
    for rows, has_kept_tokens in zip(row_indices, _with_kept_tokens(step.batch, row_indices), strict=True):
        mini_batch = step.batch.select(rows)
        if not has_kept_tokens:
            rejected += bool(mini_batch.columns["learn"].any())
            continue
        update = _optimizer_step(policy, mini_batch, scores, config, max_response_tokens)
        if update is None:
            skipped += 1
            continue
        updates.append(update[0])
        norms.append(update[1])
    metrics = _rollout_metrics(step) | {"policy/skipped_updates": float(skipped)}
    if step.correction:
        metrics["policy/rejected_updates"] = float(rejected)
    if not updates:
        return metrics
    ratios = [update["ratio"] for update in updates]
    metrics |= {
        "policy/learning_rate": policy.optimizer.param_groups[0]["lr"],
        "policy/gradient_norm": sum(norms) / len(norms),
        "policy/clip_fraction": float(torch.cat([update["clipped"] for update in updates]).mean()),
        "policy/ratio_min": float(torch.cat(ratios).min()),
        "policy/ratio_max": float(torch.cat(ratios).max()),
        "policy/first_ratio_deviation": float((ratios[0] - 1).abs().max()),
    }
    if config.kl_coefficient:
        metrics["policy/kl_to_reference"] = float(torch.cat([update["kl"] for update in updates]).mean())
    return metrics


def _with_kept_tokens(batch: Batch, row_indices: Sequence[Int64[Tensor, " _mini_batch"]]) -> list[bool]:
    """Return for each mini-batch whether a token to learn from is not rejected, on all ranks the same. Collective.

    Ratios decide what is rejected. If the ranks' ratios differ in the last bit, they could fall on two sides of a
    bound, and a rank that makes an update would wait for one that makes none. So the first rank decides.
    """
    rejected = batch.columns.get("rejected")
    rows_with_tokens = kept_tokens(batch.columns["learn"], rejected).any(1)
    decisions = [bool(rows_with_tokens[rows].any()) for rows in row_indices]
    return decisions if rejected is None else broadcast_from_first(decisions)


def _rollout_metrics(step: AdvantageBatch) -> dict[str, float]:
    """Return figures of the rollouts, their rewards and advantages, before the policy learns from them."""
    mask, learn = step.batch.response_mask, step.batch.columns["learn"]
    advantages = step.batch.columns["advantages"][learn]
    advantages = advantages[advantages.isfinite()]
    correction = correction_metrics(step.correction, learn) if step.correction else {}
    metrics = {
        "policy/reward": float(step.rewards[step.rewards.isfinite()].mean()),
        "policy/non_finite_rewards": float((~step.rewards.isfinite()).sum()),
        "policy/advantage_deviation": float(advantages.std(correction=0)) if len(advantages) else 0.0,
        "policy/entropy": float(step.entropy[mask].mean()),
        "policy/response_tokens": float(mask.sum(1).float().mean()),
        "policy/truncated": float(step.experience.truncated.float().mean()),
        **{f"policy/{name}": figure for name, figure in correction.items()},
    }
    if step.generator_difference.numel():
        metrics["generation/log_prob_difference_mean"] = float(step.generator_difference.mean())
        metrics["generation/log_prob_difference_max"] = float(step.generator_difference.max())
        metrics["generation/exp_log_prob_difference_mean"] = float(step.generator_difference.exp().mean())
    if step.stale_difference.numel():
        metrics["rollouts/stale_log_prob_difference_mean"] = float(step.stale_difference.mean())
    return metrics


def _optimizer_step(
    policy: Trainer, batch: Batch, scores: Scores, config: PolicyConfig, max_response_tokens: int
) -> tuple[NamedTensors, float] | None:
    """Make one optimizer step; return its figures of each row and its gradient norm, None where the trainer skipped
    it."""
    count = loss_count(batch.columns["learn"], config.average_over, max_response_tokens)
    score = scores("entropy") if config.entropy_coefficient else scores()

    def loss(scored: NamedTensors, micro_batch: Batch) -> tuple[Float[Tensor, ""], NamedTensors]:
        columns = micro_batch.columns
        mask, rejected = columns["learn"] & micro_batch.response_mask, columns.get("rejected")
        surrogate = clipped_surrogate(
            scored["log_probs"],
            columns["old_log_probs"],
            columns["advantages"],
            mask,
            ratio="sequence" if config.loss is PolicyLoss.gspo else "token",
            clip_range_low=config.clip_range_low,
            clip_range_high=config.clip_range_high,
            dual_clip=config.dual_clip,
            average_over=config.average_over,
            importance=columns.get("importance"),
            rejected=rejected,
        )
        total, rows = surrogate.total, {"ratio": surrogate.ratio, "clipped": surrogate.clipped}
        if config.kl_coefficient:
            kl = kl_to_reference(
                scored["log_probs"], columns["reference_log_probs"], mask, config.average_over, rejected
            )
            total = total + config.kl_coefficient * kl.sum()
            rows["kl"] = kl.detach()
        if config.entropy_coefficient:
            bonus = entropy_bonus(scored["entropy"], mask, config.average_over, rejected)
            total = total - config.entropy_coefficient * bonus
        return total / count, rows

    return policy.step(batch, score, loss)
