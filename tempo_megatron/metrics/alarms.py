"""Figures of an iteration that say that its arithmetic is off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tempo_megatron.config import Config

_DIFFERENCE = "generation/exp_log_prob_difference_mean"
_DEVIATION = "policy/first_ratio_deviation"
_NOISE_LIMIT = 0.3


def raised(metrics: Mapping[str, Any], config: Config) -> tuple[dict[str, float], list[str]]:
    """Figures for the log, 1.0 for an alarm that is raised, and a line of text for each of those. What is not a number
    raises its alarm.

    `generation/log_prob_alarm`: mean exp|log p_trainer - log p_generator| is above its limit. `policy/noise_to_clip`:
    how far ratios are from 1 before any update, as a share of the nearer clip; above 0.3 rounding decides what is
    clipped.
    """
    figures: dict[str, float] = {}
    lines = []
    if _DIFFERENCE in metrics:
        difference, limit = metrics[_DIFFERENCE], config.generation.log_prob_alarm
        parted = not difference <= limit  # a comparison with NaN is false
        figures["generation/log_prob_alarm"] = float(parted)
        if parted:
            lines.append(
                f"generator and trainer disagree about log-probs: mean of exp|difference| {difference:.4f}, should be "
                f"at most generation.log_prob_alarm {limit}"
            )
    if _DEVIATION in metrics:
        share = metrics[_DEVIATION] / min(config.policy.clip_range_low, config.policy.clip_range_high)
        noisy = not share <= _NOISE_LIMIT
        figures |= {"policy/noise_to_clip": share, "policy/noise_alarm": float(noisy)}
        if noisy:
            lines.append(
                f"ratios are noisy before any update: {metrics[_DEVIATION]:.2e} from 1, {share:.2f} of the clip; above "
                f"{_NOISE_LIMIT} rounding decides what is clipped "
                "(model.fp8, policy.clip_range_low, policy.clip_range_high)"
            )
    return figures, lines
