"""Settings of methods that label questions by votes are refused at start where they do nothing."""

from __future__ import annotations

import pytest

from tempo_megatron.config import load_config
from tempo_megatron.validation.pseudo_labels import pseudo_label_problems, warm_up_problems

VOTES = ("method=scrl", "loop.votes_per_prompt=32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method=scrl",), "policy.scrl.negative_share: 0.125 of 8 votes is at most one response"),
        ((*VOTES, "policy.scrl.negative_share=0.03"), "needs loop.votes_per_prompt above 33.3333"),
        ((*VOTES, "policy.scrl.negative_share=0.4"), "policy.scrl.negative_share: at most positive_share (0.375)"),
        (("policy.scrl.margin=0.5",), "policy.scrl: method tempo does not read it, only scrl does"),
        (("method=ttrl", "policy.trapo.top_share=0.2"), "policy.trapo: method ttrl does not read it, only trapo does"),
        (("method=trapo", "policy.trapo.top_share=0", "policy.trapo.similarity=2"), "select no question"),
    ],
)
def test_what_cannot_label_is_refused(settings: tuple[str, ...], message: str) -> None:
    """One line names the setting. With 8 votes SCRL would run without its negative labels and say nothing."""
    (line,) = pseudo_label_problems(load_config(None, settings))
    assert message in line


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("method=trapo", "policy.trapo.top_share=0"),
        VOTES,
        ("method=scrl", "policy.scrl.negative_share=0"),
        (*VOTES, "policy.scrl.entropy_penalty=0"),
    ],
)
def test_what_can_label_passes(settings: tuple[str, ...]) -> None:
    """Without negative labels it is the paper's ablation."""
    assert list(pseudo_label_problems(load_config(None, settings))) == []


@pytest.mark.parametrize(
    ("settings", "labeled", "unlabeled", "needed"),
    [
        ((), 1000, 100, 63),  # 8 * 1000 / 128 = 62.5
        ((), 100, 1000, 55),  # 7 * 1000 / 128 = 54.7: the 55th M-step begins the eighth pass
        (("policy.trapo.warm_up_passes=1",), 1000, 1000, 1),
    ],
)
def test_a_run_that_ends_in_its_warm_up_is_refused(
    settings: tuple[str, ...], labeled: int, unlabeled: int, needed: int
) -> None:
    """It would be GRPO on labeled questions. The bound is exact."""

    def problems(*more: str) -> list[str]:
        return list(warm_up_problems(load_config(None, ["method=trapo", *settings, *more]), labeled, unlabeled))

    (line,) = problems(f"loop.iterations={needed - 1}")
    assert f"take {needed} M-steps" in line and "no unlabeled question would train" in line
    assert problems(f"loop.iterations={needed}") == []
    assert problems(f"loop.iterations={-(-needed // 2)}", "loop.m_steps=2") == []
    assert list(warm_up_problems(load_config(None, ["method=ttrl", "loop.iterations=1"]), labeled, unlabeled)) == []
