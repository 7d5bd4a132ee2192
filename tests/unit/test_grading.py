"""Grades are 0 or 1 whatever a scorer does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.grading import Grader, grader


def respond(text: str, grader_name: str, finish_reason: str = "stop") -> Rollout:
    return Rollout(Prompt("p", (1,), "here", grader_name), 0, tuple(map(ord, text)), (0.0,) * len(text), finish_reason)


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def test_a_cut_response_is_wrong_even_when_its_text_is_right() -> None:
    """A policy must not be rewarded for running into the limit."""
    graded = Grader(decode).grade([respond("42", "exact"), respond("42", "exact", "length")], {"p": {"answer": "42"}})
    assert graded == [1.0, 0.0]


def test_a_scorer_that_raises_gives_zero_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One strange response must not end a run of days, nor pass unseen."""

    def broken(text: str, answer: dict[str, Any]) -> bool:
        raise RecursionError(text)

    monkeypatch.setattr(grader, "scorer", lambda name: broken)
    made = Grader(decode)
    assert made.grade([respond("a", "exact"), respond("b", "exact")], {"p": {"answer": "a"}}) == [0.0, 0.0]
    assert made.errors == 2


def test_mathematics_is_compared_by_value() -> None:
    """`math` grades LaTeX: equal values in other forms are right."""
    answers = {"p": {"answer": "$\\frac{1}{2}$"}}
    assert Grader(decode).grade([respond("$0.5$", "math"), respond("$2$", "math")], answers) == [1.0, 0.0]
