"""Is the critic calibrated? And what does its belief say of the evidence that the EM iteration climbs?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tempo_megatron.algorithms.experience import last_response_position, last_value
from tempo_megatron.algorithms.value_loss import calibration_mask
from tempo_megatron.config import TargetRange
from tempo_megatron.data.types import Rollout
from tempo_megatron.megatron.trainer import ScoringModel
from tempo_megatron.metrics.calibration import auroc, auroc_within_groups, brier, expected_calibration_error
from tempo_megatron.metrics.evidence import evidence_terms
from tempo_megatron.metrics.question_metrics import mean
from tempo_megatron.training.phases.scoring import to_batch, values

_POSITIONS = (0.0, 0.25, 0.5, 0.75)
"""shares of a response read, at which the critic is measured too; 0 is V(x)"""


def measure(
    critic: ScoringModel, rollouts: Sequence[Rollout], correctness: Sequence[float], target_range: TargetRange
) -> dict[str, float]:
    """Figures of the critic on graded rollouts that it does not learn from."""
    batch = to_batch(rollouts)
    read = (values(critic, batch) - target_range.wrong) / (1 - target_range.wrong)
    return describe(read, batch.response_mask, rollouts, correctness)


def describe(
    probabilities: Tensor, response_mask: Tensor, rollouts: Sequence[Rollout], correctness: Sequence[float]
) -> dict[str, float]:
    """How well values tell right from wrong, after the last token and on the way there.

    probabilities [rows, sequence] are values scaled so that 0 is wrong and 1 is right, whatever the targets.
    Undefined figures (an AUROC of rollouts that are all right) are left out. Values that are not finite take no part;
    `non_finite_values` counts the rollouts that have one.
    """
    spoilt = (~probabilities.isfinite() & calibration_mask(response_mask)).any(1)
    prompts = [rollout.prompt.id for rollout in rollouts]
    last = last_value(probabilities, response_mask).tolist()
    finite = [value for value in last if math.isfinite(value)]
    found: dict[str, float | None] = {
        "non_finite_values": float(spoilt.sum()),
        "auroc": auroc(last, correctness),
        "auroc_within_prompts": auroc_within_groups(last, correctness, prompts),
        "brier": brier(last, correctness),
        "calibration_error": expected_calibration_error(last, correctness),
        "correct": sum(correctness) / len(correctness),
        "mean_value": mean(finite) if finite else None,
    }
    end, length = last_response_position(response_mask), response_mask.sum(1)
    for share in _POSITIONS:
        at = end - length + (share * length).round().long()
        there = probabilities.gather(1, at[:, None])[:, 0].tolist()
        found[f"auroc_at_{round(100 * share):03d}"] = auroc(there, correctness)
        found[f"brier_at_{round(100 * share):03d}"] = brier(there, correctness)
    return {name: value for name, value in found.items() if value is not None}


def evidence(last_values: Tensor, rollouts: Sequence[Rollout], wrong: float) -> dict[str, float]:
    """The ELBO's terms on unlabeled rollouts, from the values after the last token, [rows]; see docs/algorithms.md.
    Values that are not finite take no part; without any that is, there are no terms."""
    believed = ((last_values - wrong) / (1 - wrong)).clamp(0, 1)
    by_prompt: dict[str, list[float]] = {}
    for rollout, value in zip(rollouts, believed.tolist(), strict=True):
        if math.isfinite(value):
            by_prompt.setdefault(rollout.prompt.id, []).append(value)
    terms = evidence_terms(list(by_prompt.values())) if by_prompt else {}
    return {f"evidence/{name}": value for name, value in terms.items()}
