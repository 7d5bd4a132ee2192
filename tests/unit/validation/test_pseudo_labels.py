"""Settings of methods that label questions by votes are refused at start where they do nothing."""

from __future__ import annotations

import pytest

from tempo_megatron.config import load_config
from tempo_megatron.validation.pseudo_labels import pseudo_label_problems

VOTES = ("method=scrl", "loop.votes_per_prompt=32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method=scrl",), "policy.scrl.negative_share: 0.125 of 8 votes is at most one response"),
        ((*VOTES, "policy.scrl.negative_share=0.03"), "needs loop.votes_per_prompt above 33.3333"),
        ((*VOTES, "policy.scrl.negative_share=0.4"), "policy.scrl.negative_share: at most positive_share (0.375)"),
        (("policy.scrl.margin=0.5",), "policy.scrl: method tempo does not read it, only scrl does"),
    ],
)
def test_what_cannot_label_is_refused(settings: tuple[str, ...], message: str) -> None:
    """One line names the setting. With 8 votes SCRL would run without its negative labels and say nothing."""
    (line,) = pseudo_label_problems(load_config(None, settings))
    assert message in line


@pytest.mark.parametrize(
    "settings", [(), VOTES, ("method=scrl", "policy.scrl.negative_share=0"), (*VOTES, "policy.scrl.entropy_penalty=0")]
)
def test_what_can_label_passes(settings: tuple[str, ...]) -> None:
    """Without negative labels it is the paper's ablation."""
    assert list(pseudo_label_problems(load_config(None, settings))) == []
