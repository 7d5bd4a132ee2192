"""Alarms over metrics of an iteration that show errors of its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tempo_megatron.config import Config

_DIFFERENCE = "generation/exp_log_prob_difference_mean"
_DEVIATION = "policy/first_ratio_deviation"
_REJECTED = "policy/rejected_updates"
_NOISE_LIMIT = 0.3
"""Above this share of the clip range, rounding decides which ratios are clipped."""


def arithmetic_alarms(metrics: Mapping[str, Any], config: Config) -> tuple[dict[str, float], list[str]]:
    """Returns metrics for the log, in which 1.0 is an alarm that is raised, and a line of text for each raised alarm.
    NaN raises its alarm.

    `generation/log_prob_alarm`: the mean of exp|log p_trainer - log p_generator| is above its limit.
    `policy/noise_to_clip`: the distance of ratios from 1 before any update, as a share of the smaller clip range. Above
    0.3 it raises `policy/noise_alarm`, because rounding then decides which ratios are clipped.
    `policy/rejected_updates`: updates were not made, because `policy.rollout_correction` rejected all their tokens.
    """
    alarms: dict[str, float] = {}
    lines = []
    if _DIFFERENCE in metrics:
        difference, limit = metrics[_DIFFERENCE], config.generation.log_prob_alarm
        is_above = not difference <= limit  # a comparison with NaN is false
        alarms["generation/log_prob_alarm"] = float(is_above)
        if is_above:
            lines.append(
                f"generator and trainer disagree about log-probs: mean of exp|difference| {difference:.4f}, should be "
                f"at most generation.log_prob_alarm {limit}"
            )
    if _DEVIATION in metrics:
        share = metrics[_DEVIATION] / min(config.policy.clip_range_low, config.policy.clip_range_high)
        is_noisy = not share <= _NOISE_LIMIT
        alarms |= {"policy/noise_to_clip": share, "policy/noise_alarm": float(is_noisy)}
        if is_noisy:
            lines.append(
                f"ratios are noisy before any update: {metrics[_DEVIATION]:.2e} from 1, {share:.2f} of the clip; above "
                f"{_NOISE_LIMIT} rounding decides what is clipped "
                "(model.fp8, policy.clip_range_low, policy.clip_range_high)"
            )
    if metrics.get(_REJECTED):
        lines.append(
            f"{metrics[_REJECTED]:.0f} updates were not made: policy.rollout_correction rejected all their tokens; its "
            "bounds are too narrow"
        )
    return alarms, lines
