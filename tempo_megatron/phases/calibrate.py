"""The E-step: the critic learns, at every token, the verified correctness of the policy's answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import last_response_position
from tempo_megatron.algorithms.value_loss import calibration_mask, squared_error
from tempo_megatron.config import CriticConfig
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.megatron.trainer import Rows, Trainer
from tempo_megatron.metrics.calibration import auroc, auroc_within_groups, brier
from tempo_megatron.phases.scoring import mini_batches, to_batch, values


def calibrate(
    critic: Trainer,
    rollouts: Sequence[Rollout],
    correctness: Sequence[float],
    config: CriticConfig,
    seed: Sequence[object],
) -> dict[str, float]:
    """Train the critic on graded labelled rollouts; returns metrics, those of calibration taken before training.

    The loss of a mini-batch is the squared error summed over its response tokens and last prompt tokens, divided by
    their number over all ranks.
    """
    wrong = config.target_range.wrong
    targets = wrong + (1 - wrong) * torch.tensor(correctness)
    batch = to_batch(rollouts, critic.length_multiple).with_columns(targets=targets)
    probabilities = (values(critic, batch) - wrong) / (1 - wrong)
    metrics = measure(probabilities, batch, rollouts, correctness)
    losses, norms = [], []
    for epoch in range(config.epochs):
        for rows in mini_batches(batch.rows, config.mini_batches, *seed, "calibrate", epoch):
            loss, norm = _step(critic, batch.select(rows))
            losses.append(loss)
            norms.append(norm)
    return metrics | {
        "critic/loss": sum(losses) / len(losses),
        "critic/gradient_norm": sum(norms) / len(norms),
    }


def measure(
    probabilities: Tensor, batch: Batch, rollouts: Sequence[Rollout], correctness: Sequence[float]
) -> dict[str, float]:
    """How well the value after the last token tells right from wrong, values being scaled to {0, 1} whatever the
    targets. Undefined figures are left out."""
    final = probabilities.gather(1, last_response_position(batch.response_mask)[:, None])[:, 0].tolist()
    prompts = [rollout.prompt.id for rollout in rollouts]
    found = {
        "critic/auroc": auroc(final, correctness),
        "critic/auroc_within_prompts": auroc_within_groups(final, correctness, prompts),
        "critic/brier": brier(final, correctness),
        "critic/correct": sum(correctness) / len(correctness),
        "critic/mean_value": sum(final) / len(final),
    }
    return {name: value for name, value in found.items() if value is not None}


def _step(critic: Trainer, batch: Batch) -> tuple[float, float]:
    count = int(calibration_mask(batch.response_mask).sum())

    def loss(output: Tensor, micro_batch: Batch) -> tuple[Tensor, Rows]:
        mask = calibration_mask(micro_batch.response_mask)
        total = squared_error(output[..., 0], micro_batch.columns["targets"], mask)
        rows = ((output[..., 0].detach() - micro_batch.columns["targets"][:, None]).square() * mask).sum(1)
        return total / count, {"squared_error": rows}

    rows, norm = critic.step(batch, loss)
    return float(rows["squared_error"].sum() / count), norm
