"""The grader `choice`: where it looks for the letter, and what is no letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.grading import choice

FIXTURE = Path(__file__).parents[2] / "fixtures" / "grading" / "choice.jsonl"
ROWS = [json.loads(line) for line in FIXTURE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=[row["response"][-40:] for row in ROWS])
def test_the_letter_is_the_one_decided_by_hand(row: dict[str, Any]) -> None:
    """Denials, hedges, lists, quantities and articles are no answers. All notations of models are read."""
    assert choice.extract(row["response"]) == row["letter"]
    for letter in "ABCDE":
        assert choice.grade(row["response"], {"answer": letter}) == (letter == row["letter"])


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The value is \\boxed{3.2}.\n\nAnswer: D", "D"),
        ("\\boxed{A = 3}\n\nAnswer: D", "D"),
        ("\\boxed{A}\n\nAnswer: D", "D"),
        ("Answer: D\n\nThis is \\boxed{12} J.", "D"),
        ("Answer: D\n\n\\boxed{D}", "D"),
        ("Answer: D\n\n\\boxed{A}", ""),
        ("Answer: $\\boxed{D}$", "D"),
        ("The answer might be A. In the end: \\boxed{D}", "D"),
        ("\\boxed{D}", "D"),
    ],
)
def test_the_answer_line_is_not_overruled_by_a_box(response: str, letter: str) -> None:
    """Our instructions ask for the line and for no box. A box counts if it stands alone or after mere prose."""
    assert choice.extract(response) == letter


@pytest.mark.parametrize(
    "label", ["Paris", "", "A or B", "None", None, True, 2.5, float("nan"), {"a": 1}, ["A"], "-1", "26"]
)
def test_a_label_that_no_response_can_match_is_refused(label: Any) -> None:
    """A question that no response can answer teaches nothing and lowers each metric."""
    with pytest.raises(ValueError, match="a letter or an index"):
        choice.check_label({"answer": label})


@pytest.mark.parametrize("label", ["C", "c", "(C)", "C.", "**C**", "\\text{C}", "\uff23", 2, "2"])
def test_labels_are_normalized_as_responses_are(label: Any) -> None:
    """Data sets write letters, indices and markup. All of these labels mean C."""
    choice.check_label({"answer": label})
    assert choice.grade("Answer: C", {"answer": label})
    assert not choice.grade("Answer: B", {"answer": label})
