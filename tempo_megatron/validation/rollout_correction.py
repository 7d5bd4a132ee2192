"""Checks the settings that correct the difference between the generator's and the trainer's policy."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.config import Config, ImportanceWeight, Rejection, RolloutCorrectionConfig

_KEY = "policy.rollout_correction"
_BOUNDS_WEIGHT = {
    ImportanceWeight.token: (Rejection.token, Rejection.any_token),
    ImportanceWeight.sequence: (Rejection.sequence,),
    ImportanceWeight.geometric_mean: (Rejection.geometric_mean, Rejection.any_token),
}
"""The rejections that leave no weight of this kind above `reject_above`."""


def correction_problems(config: Config) -> Iterator[str]:
    """Yield a line for each bound that cannot be, and for each setting of the group that does nothing."""
    correction = config.policy.rollout_correction
    if correction.is_active and config.generation.top_p < 1:
        yield (
            f"{_KEY}: needs generation.top_p 1, got {config.generation.top_p}: the generator's log-probs are those of "
            "the nucleus, the trainer's of the whole vocabulary"
        )
    yield from _weight_problems(correction)
    yield from _rejection_problems(correction)


def _weight_problems(correction: RolloutCorrectionConfig) -> Iterator[str]:
    """Yield a line for each problem of the weight and its cap."""
    weight, cap, reject_above = correction.weight, correction.cap, correction.reject_above
    if 0 < cap < 1:
        yield f"{_KEY}.cap: at least 1, or 0 for none, got {cap}"
    if weight is ImportanceWeight.none:
        if cap:
            yield f"{_KEY}.cap: {cap} does nothing, weight is none"
        return
    bounded = correction.reject in _BOUNDS_WEIGHT[weight] and reject_above > 0
    if not cap and not bounded:
        yield (
            f"{_KEY}.weight: {weight} has no upper bound: set cap, or reject_above with reject="
            f"{' or '.join(_BOUNDS_WEIGHT[weight])}"
        )
    if bounded and cap >= reject_above:
        yield f"{_KEY}.cap: {cap} does nothing, reject={correction.reject} keeps no ratio above {reject_above}"


def _rejection_problems(correction: RolloutCorrectionConfig) -> Iterator[str]:
    """Yield a line for each problem of the rejection and its bounds."""
    if 0 < correction.reject_above <= 1:
        yield (
            f"{_KEY}.reject_above: above 1, or 0 for none, got {correction.reject_above}: the ratio of equal policies "
            "is 1"
        )
    bounds = {"reject_below": correction.reject_below, "reject_above": correction.reject_above}
    if correction.reject is Rejection.none:
        for name, bound in bounds.items():
            if bound:
                yield f"{_KEY}.{name}: {bound} does nothing, reject is none"
    elif not any(bounds.values()):
        yield f"{_KEY}.reject: {correction.reject} rejects nothing: set reject_below, reject_above or both"
