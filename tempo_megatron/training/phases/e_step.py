"""The critic's training: on verified correctness in the E-step, on a policy step's returns where the method is PPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tempo_megatron.algorithms.experience import (
    correctness_to_values,
    last_value,
    values_before,
    values_to_correctness,
)
from tempo_megatron.algorithms.value_loss import calibration_mask, return_targets, squared_error
from tempo_megatron.config import CriticConfig
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import NamedTensors, Trainer
from tempo_megatron.training.phases.advantages import AdvantageBatch
from tempo_megatron.training.phases.critic_metrics import value_metrics
from tempo_megatron.training.phases.scoring import VALUES, mini_batches, to_batch, values


def e_step(
    critic: Trainer,
    rollouts: Sequence[Rollout],
    correctness: Sequence[float],
    config: CriticConfig,
    seed: Sequence[object],
) -> tuple[dict[str, float], list[float]]:
    """Train the critic toward the response's correctness at every token (arXiv 2604.19295).

    Return metrics, and the critic's final value of each response before training, in the scale of correctness.
    """
    wrong = config.target_range.wrong
    batch = to_batch(rollouts)
    old_values = values(critic, batch)
    probabilities = values_to_correctness(old_values, wrong)
    figures = value_metrics(probabilities, batch.response_mask, rollouts, correctness)
    final_values: list[float] = last_value(probabilities, batch.response_mask).tolist()
    metrics = {f"critic/{name}": value for name, value in figures.items()}
    return metrics | learn_correctness(critic, batch, correctness, old_values, config, seed), final_values


def learn_correctness(
    critic: Trainer,
    batch: Batch,
    correctness: Sequence[float],
    old_values: Float32[Tensor, "rows sequence"],
    config: CriticConfig,
    seed: Sequence[object],
) -> dict[str, float]:
    """Train the critic toward the correctness of each row at every token; return metrics.

    `old_values` are the critic's values before training, in its own scale.
    """
    targets = correctness_to_values(torch.tensor(correctness), config.target_range.wrong)
    return _fit(critic, batch, targets[:, None].expand_as(old_values), old_values, config, seed)


def learn_returns(
    critic: Trainer, step: AdvantageBatch, config: CriticConfig, seed: Sequence[object]
) -> dict[str, float]:
    """Train PPO's critic on a policy step's rollouts; return metrics.

    The targets are the returns A_t + V(x, y_<t), and the reward after the last token.
    """
    old_values, mask = step.experience.needed_values(), step.batch.response_mask
    targets = return_targets(step.advantages + values_before(old_values) * mask, step.rewards, mask)
    return _fit(critic, step.batch, targets, old_values, config, seed)


def _fit(
    critic: Trainer,
    batch: Batch,
    targets: Float[Tensor, "rows sequence"],
    old_values: Float32[Tensor, "rows sequence"],
    config: CriticConfig,
    seed: Sequence[object],
) -> dict[str, float]:
    """Train the critic in mini-batches; return metrics.

    The loss of a mini-batch is the squared error summed over its response tokens and last prompt tokens, divided by
    their number over all ranks.
    """
    batch = replace(batch, columns={"targets": targets, "values": old_values})
    losses, norms, skipped = [], [], 0
    for epoch in range(config.epochs):
        for rows in mini_batches(batch.rows, config.mini_batches, *seed, "e_step", epoch):
            loss_and_norm = _optimizer_step(critic, batch.select(rows), config.value_clip)
            if loss_and_norm is None:
                skipped += 1
                continue
            losses.append(loss_and_norm[0])
            norms.append(loss_and_norm[1])
    if not losses:
        return {"critic/skipped_updates": float(skipped)}
    return {
        "critic/skipped_updates": float(skipped),
        "critic/loss": sum(losses) / len(losses),
        "critic/gradient_norm": sum(norms) / len(norms),
        "critic/learning_rate": critic.optimizer.param_groups[0]["lr"],
    }


def _optimizer_step(critic: Trainer, batch: Batch, clip: float) -> tuple[float, float] | None:
    """Make one optimizer step; return its loss and gradient norm, None where the trainer skipped it."""
    count = int(calibration_mask(batch.response_mask).sum())

    def loss(scores: NamedTensors, micro_batch: Batch) -> tuple[Float[Tensor, ""], NamedTensors]:
        mask, columns = calibration_mask(micro_batch.response_mask), micro_batch.columns
        error = squared_error(scores["values"], columns["targets"], mask, columns["values"], clip)
        return error.sum() / count, {"squared_error": error.sum(1).detach()}

    update = critic.step(batch, VALUES, loss)
    return update and (float(update[0]["squared_error"].sum() / count), update[1])
