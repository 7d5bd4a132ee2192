"""The file of pairs whose verdicts were decided by hand: choice, free and zebra agree with it, and with themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.grading.answer_normalization import normalize_answer
from tempo_megatron.grading.choice import gold_letter
from tempo_megatron.grading.scorers import scorer

CASES = Path(__file__).parents[2] / "fixtures" / "grading" / "cases.jsonl"
ROWS = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


def rows(*graders: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["grader"] in graders]


@pytest.mark.parametrize("name", ["choice", "free", "zebra"])
def test_no_verdict_differs_from_the_one_by_hand(name: str) -> None:
    """The kinds of the file: notation, answer lines and boxes, denials, hedges, lists, broken JSON, thinking."""
    grade = scorer(name).grade
    assert grade
    assert len(rows(name)) > 25
    assert [row for row in rows(name) if grade(row["response"], row) != row["correct"]] == []


def test_the_grade_is_that_of_the_extracted_answer() -> None:
    """Votes and clusters count extracted answers: the grade must follow from them, whatever the response."""
    for row in rows("choice", "free"):
        named, label = scorer(row["grader"]), row["answer"]
        gold = gold_letter(label) if row["grader"] == "choice" else normalize_answer(str(label))
        assert named.grade and named.grade(row["response"], row) == (named.extract(row["response"]) == gold != ""), row


def test_an_extracted_answer_is_graded_as_its_response_is() -> None:
    """To extract takes nothing away: what was right is right when it is read again."""
    for row in rows("choice", "free", "zebra"):
        named = scorer(row["grader"])
        assert named.grade
        extracted = named.extract(row["response"])
        assert named.grade(extracted, row) == named.grade(row["response"], row), row
        assert named.extract(extracted) == extracted
