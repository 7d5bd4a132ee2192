"""The critic's calibration on graded rollouts, and the evidence that its values give for unlabeled questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from tempo_megatron.algorithms.experience import last_response_position, last_value, values_to_correctness
from tempo_megatron.algorithms.value_loss import calibration_mask
from tempo_megatron.config import TargetRange
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.metrics.calibration import (
    CalibrationBin,
    auroc,
    auroc_within_groups,
    brier,
    calibration_bins,
    expected_calibration_error,
)
from tempo_megatron.metrics.evidence import evidence_terms
from tempo_megatron.metrics.question_metrics import mean
from tempo_megatron.training.phases.advantages import AdvantageBatch
from tempo_megatron.training.phases.scoring import to_batch, values

_POSITIONS = (0.0, 0.25, 0.5, 0.75)
"""The shares of a response after which the critic's values are measured too; 0 is V(x)."""


def critic_metrics(
    critic: MegatronModel, rollouts: Sequence[Rollout], correctness: Sequence[float], target_range: TargetRange
) -> tuple[dict[str, float], list[CalibrationBin]]:
    """Return figures of the critic on graded rollouts that it does not learn from, and their calibration bins."""
    batch = to_batch(rollouts)
    probabilities = values_to_correctness(values(critic, batch), target_range.wrong)
    figures = value_metrics(probabilities, batch.response_mask, rollouts, correctness)
    return figures, calibration_bins(last_value(probabilities, batch.response_mask).tolist(), correctness)


def value_metrics(
    probabilities: Float[Tensor, "rows sequence"],
    response_mask: Bool[Tensor, "rows sequence"],
    rollouts: Sequence[Rollout],
    correctness: Sequence[float],
) -> dict[str, float]:
    """Return how well values tell right from wrong, after the last token and at earlier positions.

    `probabilities` are values scaled so that 0 is wrong and 1 is right, whatever the targets.
    Undefined figures (an AUROC of rollouts that are all right) are left out. Values that are not finite are left out of
    every figure; `non_finite_values` counts the rollouts that have one.
    """
    non_finite = (~probabilities.isfinite() & calibration_mask(response_mask)).any(1)
    prompts = [rollout.prompt.id for rollout in rollouts]
    last = last_value(probabilities, response_mask).tolist()
    finite = [value for value in last if math.isfinite(value)]
    figures: dict[str, float | None] = {
        "non_finite_values": float(non_finite.sum()),
        "auroc": auroc(last, correctness),
        "auroc_within_prompts": auroc_within_groups(last, correctness, prompts),
        "brier": brier(last, correctness),
        "calibration_error": expected_calibration_error(last, correctness),
        "correct": sum(correctness) / len(correctness),
        "mean_value": mean(finite) if finite else None,
    }
    end, length = last_response_position(response_mask), response_mask.sum(1)
    for share in _POSITIONS:
        position = end - length + (share * length).round().long()
        partial = probabilities.gather(1, position[:, None])[:, 0].tolist()
        figures[f"auroc_at_{round(100 * share):03d}"] = auroc(partial, correctness)
        figures[f"brier_at_{round(100 * share):03d}"] = brier(partial, correctness)
    return {name: value for name, value in figures.items() if value is not None}


def mean_final_values(rollouts: Sequence[Rollout], step: AdvantageBatch) -> dict[str, float]:
    """Return the mean value after the last token of the responses to each unlabeled question, by prompt id.

    The scale is that of correctness. Questions with a value that is not finite are left out.
    """
    last_values = last_value(step.experience.needed_values(), step.experience.response_mask)
    probabilities = values_to_correctness(last_values, step.experience.wrong).tolist()
    by_prompt: dict[str, list[float]] = {}
    for row in (~step.experience.labeled).nonzero()[:, 0].tolist():
        by_prompt.setdefault(rollouts[row].prompt.id, []).append(probabilities[row])
    means = {prompt: mean(row) for prompt, row in by_prompt.items()}
    return {prompt: value for prompt, value in means.items() if math.isfinite(value)}


def evidence_metrics(rollouts: Sequence[Rollout], step: AdvantageBatch) -> dict[str, float]:
    """Return the terms of `value_evidence` on the unlabeled rollouts of a policy step."""
    unlabeled = ~step.experience.labeled
    last_values = last_value(step.experience.needed_values(), step.experience.response_mask)[unlabeled]
    unlabeled_rollouts = [rollouts[row] for row in unlabeled.nonzero()[:, 0].tolist()]
    return value_evidence(last_values, unlabeled_rollouts, step.experience.wrong)


def value_evidence(last_values: Float[Tensor, " rows"], rollouts: Sequence[Rollout], wrong: float) -> dict[str, float]:
    """Return the ELBO's terms on rollouts from the values after their last tokens; see docs/algorithms.md.

    Values that are not finite are left out. Without any finite value there are no terms.
    """
    probabilities = values_to_correctness(last_values, wrong).clamp(0, 1)
    by_prompt: dict[str, list[float]] = {}
    for rollout, probability in zip(rollouts, probabilities.tolist(), strict=True):
        if math.isfinite(probability):
            by_prompt.setdefault(rollout.prompt.id, []).append(probability)
    terms = evidence_terms(list(by_prompt.values())) if by_prompt else {}
    return {f"evidence/{name}": value for name, value in terms.items()}
