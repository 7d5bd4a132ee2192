"""Settings of the rollout correction that contradict each other or do nothing are refused at start."""

from __future__ import annotations

import pytest

from tempo_megatron.config import ConfigError, load_config
from tempo_megatron.validation.rollout_correction import correction_problems

KEY = "policy.rollout_correction"


def problems(*settings: str) -> list[str]:
    """Return the problems of a recipe with these settings of the group, or with a whole override."""
    overrides = [item if item.startswith("generation.") else f"{KEY}.{item}" for item in settings]
    return list(correction_problems(load_config(None, overrides)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["weight=token", "cap=0.5"], "cap: at least 1, or 0 for none, got 0.5"),
        (["weight=token"], "weight: token has no upper bound: set cap, or reject_above with reject=token or any_token"),
        (["weight=token", "reject=token", "reject_below=0.5"], "weight: token has no upper bound"),
        (["weight=token", "reject=sequence", "reject_above=2"], "weight: token has no upper bound"),
        (["cap=2"], "cap: 2.0 does nothing, weight is none"),
        (["weight=token", "cap=5", "reject=token", "reject_above=5"], "keeps no ratio above 5.0"),
        (["weight=geometric_mean", "cap=5", "reject=any_token", "reject_above=4"], "keeps no ratio above 4.0"),
        (["reject=token"], "reject: token rejects nothing: set reject_below, reject_above or both"),
        (["reject_below=0.5"], "reject_below: 0.5 does nothing, reject is none"),
        (["reject_above=5"], "reject_above: 5.0 does nothing, reject is none"),
        (["reject=token", "reject_below=0.5", "reject_above=0.4"], "reject_above: above 1, or 0 for none, got 0.4"),
        (["reject=sequence", "reject_above=1"], "reject_above: above 1, or 0 for none, got 1.0"),
        (["weight=token", "cap=2", "generation.top_p=0.9"], "needs generation.top_p 1, got 0.9"),
        (["reject=token", "reject_above=2", "generation.top_p=0.9"], "needs generation.top_p 1, got 0.9"),
    ],
)
def test_what_cannot_be_or_does_nothing_is_refused(settings: list[str], message: str) -> None:
    """One line names the setting. vLLM renormalizes log-probs over a nucleus, so their ratio to the trainer's says
    nothing there."""
    (line,) = problems(*settings)
    assert line.startswith(KEY) and message in line


def test_a_lower_bound_of_1_or_more_is_refused() -> None:
    """It would reject tokens on which both policies agree, and it leaves no bounds with low >= high."""
    with pytest.raises(ConfigError, match="reject_below: at least 0 and below 1, got 1"):
        load_config(None, [f"{KEY}.reject=token", f"{KEY}.reject_below=1"])


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["generation.top_p=0.9"],
        ["weight=token", "cap=2"],
        ["weight=token", "reject=token", "reject_below=0.5", "reject_above=5"],
        ["weight=token", "cap=2", "reject=token", "reject_above=5"],
        ["weight=sequence", "cap=2", "reject=geometric_mean", "reject_below=0.999", "reject_above=1.001"],
        ["weight=geometric_mean", "cap=1", "reject=any_token", "reject_below=1e-4"],
        ["reject=sequence", "reject_above=2"],
    ],
)
def test_corrections_of_the_literature_are_accepted(settings: list[str]) -> None:
    """No correction, truncated and masked importance sampling of tokens and sequences, and rejection alone."""
    assert problems(*settings) == []
