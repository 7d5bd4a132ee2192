"""The grader `free`: which texts are one answer, and which labels a response can match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.grading import free
from tempo_megatron.grading.answer_normalization import normalize_answer

FIXTURE = Path(__file__).parents[2] / "fixtures" / "grading" / "free.jsonl"
ROWS = [json.loads(line) for line in FIXTURE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['answer']} {row['response'][-40:]}" for row in ROWS])
def test_the_grade_is_the_one_decided_by_hand(row: dict[str, Any]) -> None:
    """Denials, hedges and other values are wrong. Sentences, counted things and named equations are read."""
    assert free.grade(row["response"], row) is row["right"]
    assert row["right"] == (free.extract(row["response"]) == normalize_answer(row["answer"]) != "")


@pytest.mark.parametrize(
    "response", ["Yes or No", "Yes. No.", "(A) or (B)", "(A) is wrong", "4 or possibly 5", "Yes is wrong", ""]
)
def test_several_answers_and_denials_are_no_answer(response: str) -> None:
    """Majority votes and clusters must not count them as an answer."""
    assert free.extract(response) == ""


def test_numbers_are_compared_to_their_last_digit() -> None:
    """A decimal context would round to 28 digits."""
    number = "1" * 40
    assert free.grade(f"Answer: {number}", {"answer": number})
    assert not free.grade(f"Answer: {number}", {"answer": number[:-1] + "2"})
    assert not free.grade("Answer: 1e5", {"answer": "100000"})


@pytest.mark.parametrize(
    "label", ["", "  ", "**", float("nan"), None, {"a": 1}, ["a"], "yes or no", "a\x0cb", "(A) or (B)"]
)
def test_a_label_that_no_response_can_match_is_refused(label: Any) -> None:
    """A question that no response can answer teaches nothing and lowers each metric."""
    with pytest.raises(ValueError, match="label"):
        free.check_label({"answer": label})


@pytest.mark.parametrize(
    "label",
    ["yes", "Yes.", "(A)", 8, 8.0, "1,234", "] ) }", "}", "apple banana cat", "is it so", "\uff18", "He is tall", True],
)
def test_a_label_that_can_be_answered_grades_itself_right(label: Any) -> None:
    """The same function normalizes labels and responses."""
    free.check_label({"answer": label})
    assert free.grade(str(label), {"answer": label})
