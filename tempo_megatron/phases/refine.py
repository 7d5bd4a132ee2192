"""The M-step: the policy learns on unlabelled questions from the calibrated critic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import rewards_and_advantages, whiten
from tempo_megatron.algorithms.policy_loss import gspo
from tempo_megatron.config import PolicyConfig, TargetRange
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import Rows, Score, Trainer
from tempo_megatron.phases.scoring import mini_batches, to_batch, values


def refine(
    policy: Trainer,
    critic: Trainer,
    rollouts: Sequence[Rollout],
    score: Score,
    config: PolicyConfig,
    target_range: TargetRange,
    seed: Sequence[object],
) -> dict[str, float]:
    """One GSPO update in mini-batches from R = V(x, y_1..T) and A_t = R - V(x, y_<t); returns metrics.

    `score` gives the policy's log-probs and entropy. Old log-probs are the trainer's own, in the micro-batches of the
    update. A mini-batch's loss is its rows' losses, summed, over the number of its rows that learn.
    """
    batch = to_batch(rollouts, policy.length_multiple)
    truncated = torch.tensor([rollout.truncated for rollout in rollouts])
    critic_values = values(critic, batch)
    rewards, advantages, mask = rewards_and_advantages(
        critic_values,
        batch.response_mask,
        truncated,
        baseline=config.baseline,
        truncated_reward=config.truncated,
        wrong=target_range.wrong,
    )
    if config.whiten:
        advantages = whiten(advantages, mask)
    batch = Batch(batch.tokens, batch.response_mask, {"advantages": advantages, "learn": mask})
    norms, clipped, ratios = [], [], []
    for epoch in range(config.epochs):
        order = list(mini_batches(batch.rows, config.mini_batches, *seed, "refine", epoch))
        if epoch == 0:
            batch = batch.with_columns(**_old(policy, batch, order, score))
        for rows in order:
            done, norm = _step(policy, batch.select(rows), score, config)
            norms.append(norm)
            clipped.append(done["clipped"])
            ratios.append(done["ratio"])
    tokens = batch.response_mask
    return _difference(batch, rollouts) | {
        "policy/reward": float(rewards.mean()),
        "policy/advantage_deviation": float(advantages[mask].std(correction=0)),
        "policy/entropy": float(batch.columns["entropy"][tokens].mean()),
        "policy/gradient_norm": sum(norms) / len(norms),
        "policy/clip_fraction": float(torch.cat(clipped).mean()),
        "policy/ratio_min": float(torch.cat(ratios).min()),
        "policy/ratio_max": float(torch.cat(ratios).max()),
        "policy/first_ratio_deviation": float((ratios[0] - 1).abs().max()),
        "policy/response_tokens": float(tokens.sum(1).float().mean()),
        "policy/truncated": float(truncated.float().mean()),
    }


def _old(policy: Trainer, batch: Batch, order: Sequence[Tensor], score: Score) -> Rows:
    """Log-probs and entropy before the update, from the mini-batches that the update will use."""
    parts = [policy.score(batch.select(rows), score) for rows in order]
    back = torch.cat(list(order)).argsort()
    return {
        "old_log_probs": torch.cat([part["log_probs"] for part in parts])[back],
        "entropy": torch.cat([part["entropy"] for part in parts])[back],
    }


def _step(policy: Trainer, batch: Batch, score: Score, config: PolicyConfig) -> tuple[Rows, float]:
    count = max(1, int(batch.columns["learn"].any(1).sum()))

    def loss(logits: Tensor, micro_batch: Batch) -> tuple[Tensor, Rows]:
        columns = micro_batch.columns
        made = gspo(
            score(logits, micro_batch)["log_probs"],
            columns["old_log_probs"],
            columns["advantages"],
            columns["learn"] & micro_batch.response_mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        return made.total / count, {"ratio": made.ratio, "clipped": made.clipped}

    return policy.step(batch, loss)


def _difference(batch: Batch, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How far the generator's log-probs of the same tokens are from the trainer's."""
    trainer = batch.columns["old_log_probs"][batch.response_mask]
    generator = torch.tensor([value for rollout in rollouts for value in rollout.generator_log_probs])
    difference = (trainer - generator).abs()
    return {
        "generation/log_prob_difference_mean": float(difference.mean()),
        "generation/log_prob_difference_max": float(difference.max()),
        "generation/exp_log_prob_difference_mean": float(difference.exp().mean()),
    }
