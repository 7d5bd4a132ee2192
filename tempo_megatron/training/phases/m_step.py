"""The M-step: the policy learns from the advantages of its own rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tempo_megatron.algorithms.policy_loss import clipped_surrogate, entropy_bonus, kl_to_reference, loss_count
from tempo_megatron.config import PolicyConfig, PolicyLoss
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import NamedTensors, Trainer
from tempo_megatron.training.phases.advantages import Estimate
from tempo_megatron.training.phases.scoring import Scores, mini_batches


def refine(
    policy: Trainer, found: Estimate, scores: Scores, config: PolicyConfig, seed: Sequence[object], *, longest: int
) -> dict[str, float]:
    """One update in mini-batches; returns metrics. A mini-batch in which nothing learns makes no step. `longest`: the
    most tokens that a response may have."""
    norms: list[float] = []
    done: list[NamedTensors] = []
    skipped = 0
    for epoch in range(config.epochs):
        later = mini_batches(found.batch.rows, config.mini_batches, *seed, "m_step", epoch)
        for rows in later if epoch else found.order:
            part = found.batch.select(rows)
            if part.columns["learn"].any():
                made = _step(policy, part, scores, config, longest)
                if made is None:
                    skipped += 1
                    continue
                done.append(made[0])
                norms.append(made[1])
    metrics = _describe(found) | {"policy/skipped_updates": float(skipped)}
    if not done:
        return metrics
    ratios = [part["ratio"] for part in done]
    metrics |= {
        "policy/learning_rate": policy.optimizer.param_groups[0]["lr"],
        "policy/gradient_norm": sum(norms) / len(norms),
        "policy/clip_fraction": float(torch.cat([part["clipped"] for part in done]).mean()),
        "policy/ratio_min": float(torch.cat(ratios).min()),
        "policy/ratio_max": float(torch.cat(ratios).max()),
        "policy/first_ratio_deviation": float((ratios[0] - 1).abs().max()),
    }
    if config.kl_coefficient:
        metrics["policy/kl_to_reference"] = float(torch.cat([part["kl"] for part in done]).mean())
    return metrics


def _describe(found: Estimate) -> dict[str, float]:
    mask, learn = found.batch.response_mask, found.batch.columns["learn"]
    learned = found.batch.columns["advantages"][learn]
    learned = learned[learned.isfinite()]
    return {
        "policy/reward": float(found.rewards[found.rewards.isfinite()].mean()),
        "policy/non_finite_rewards": float((~found.rewards.isfinite()).sum()),
        "policy/advantage_deviation": float(learned.std(correction=0)) if len(learned) else 0.0,
        "policy/entropy": float(found.entropy[mask].mean()),
        "policy/response_tokens": float(mask.sum(1).float().mean()),
        "policy/truncated": float(found.experience.truncated.float().mean()),
        "generation/log_prob_difference_mean": float(found.generator_difference.mean()),
        "generation/log_prob_difference_max": float(found.generator_difference.max()),
        "generation/exp_log_prob_difference_mean": float(found.generator_difference.exp().mean()),
    }


def _step(
    policy: Trainer, batch: Batch, scores: Scores, config: PolicyConfig, longest: int
) -> tuple[NamedTensors, float] | None:
    count = loss_count(batch.columns["learn"], config.average_over, longest)
    score = scores("entropy") if config.entropy_coefficient else scores()

    def loss(scored: NamedTensors, micro_batch: Batch) -> tuple[Tensor, NamedTensors]:
        columns = micro_batch.columns
        mask = columns["learn"] & micro_batch.response_mask
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
        )
        total, rows = surrogate.total, {"ratio": surrogate.ratio, "clipped": surrogate.clipped}
        if config.kl_coefficient:
            kl = kl_to_reference(scored["log_probs"], columns["reference_log_probs"], mask, config.average_over)
            total = total + config.kl_coefficient * kl.sum()
            rows["kl"] = kl.detach()
        if config.entropy_coefficient:
            bonus = entropy_bonus(scored["entropy"], mask, config.average_over)
            total = total - config.entropy_coefficient * bonus
        return total / count, rows

    return policy.step(batch, score, loss)
