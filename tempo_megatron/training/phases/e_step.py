"""The critic learns: verified correctness in the E-step, a policy step's returns where the method is PPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tempo_megatron.algorithms.experience import values_before
from tempo_megatron.algorithms.value_loss import calibration_mask, return_targets, squared_error
from tempo_megatron.config import CriticConfig
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import NamedTensors, Trainer
from tempo_megatron.training.phases.advantages import Estimate
from tempo_megatron.training.phases.critic_metrics import describe
from tempo_megatron.training.phases.scoring import VALUES, mini_batches, to_batch, values


def calibrate(
    critic: Trainer,
    rollouts: Sequence[Rollout],
    correctness: Sequence[float],
    config: CriticConfig,
    seed: Sequence[object],
) -> dict[str, float]:
    """The E-step: at every token the target is the response's correctness (arXiv 2604.19295). Returns metrics, those of
    the values taken before training."""
    wrong = config.target_range.wrong
    batch = to_batch(rollouts)
    read = values(critic, batch)
    found = describe((read - wrong) / (1 - wrong), batch.response_mask, rollouts, correctness)
    targets = (wrong + (1 - wrong) * torch.tensor(correctness))[:, None].expand_as(read)
    metrics = {f"critic/{name}": value for name, value in found.items()}
    return metrics | _fit(critic, batch, targets, read, config, seed)


def learn_returns(critic: Trainer, found: Estimate, config: CriticConfig, seed: Sequence[object]) -> dict[str, float]:
    """PPO's critic: the returns A_t + V(x, y_<t) of a policy step's rollouts, and the reward after the last token."""
    read, mask = found.experience.needed_values(), found.batch.response_mask
    targets = return_targets(found.advantages + values_before(read) * mask, found.rewards, mask)
    return _fit(critic, found.batch, targets, read, config, seed)


def _fit(
    critic: Trainer, batch: Batch, targets: Tensor, read: Tensor, config: CriticConfig, seed: Sequence[object]
) -> dict[str, float]:
    """A mini-batch's loss is the squared error summed over its response tokens and last prompt tokens, divided by
    their number over all ranks."""
    batch = replace(batch, columns={"targets": targets, "values": read})
    losses, norms, skipped = [], [], 0
    for epoch in range(config.epochs):
        for rows in mini_batches(batch.rows, config.mini_batches, *seed, "e_step", epoch):
            made = _step(critic, batch.select(rows), config.value_clip)
            if made is None:
                skipped += 1
                continue
            losses.append(made[0])
            norms.append(made[1])
    if not losses:
        return {"critic/skipped_updates": float(skipped)}
    return {
        "critic/skipped_updates": float(skipped),
        "critic/loss": sum(losses) / len(losses),
        "critic/gradient_norm": sum(norms) / len(norms),
        "critic/learning_rate": critic.optimizer.param_groups[0]["lr"],
    }


def _step(critic: Trainer, batch: Batch, clip: float) -> tuple[float, float] | None:
    count = int(calibration_mask(batch.response_mask).sum())

    def loss(scores: NamedTensors, micro_batch: Batch) -> tuple[Tensor, NamedTensors]:
        mask, columns = calibration_mask(micro_batch.response_mask), micro_batch.columns
        error = squared_error(scores["values"], columns["targets"], mask, columns["values"], clip)
        return error.sum() / count, {"squared_error": error.sum(1).detach()}

    made = critic.step(batch, VALUES, loss)
    return made and (float(made[0]["squared_error"].sum() / count), made[1])
