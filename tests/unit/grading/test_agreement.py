"""The graders `choice`, `free` and `zebra` agree with verdicts by hand, and their grades with extracted answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.grading.answer_normalization import normalize_answer
from tempo_megatron.grading.choice import gold_letter
from tempo_megatron.grading.graders import grader_functions

CASES = Path(__file__).parents[2] / "fixtures" / "grading" / "cases.jsonl"
ROWS = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


def rows_of(*graders: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["grader"] in graders]


@pytest.mark.parametrize("name", ["choice", "free", "zebra"])
def test_grades_equal_the_verdicts_by_hand(name: str) -> None:
    """The pairs cover notation, answer lines and boxes, denials, hedges, lists, broken JSON and thinking."""
    grade = grader_functions(name).grade
    assert grade
    assert len(rows_of(name)) > 25
    assert [row for row in rows_of(name) if grade(row["response"], row) != row["correct"]] == []


def test_the_grade_follows_from_the_extracted_answer() -> None:
    """Votes and clusters count extracted answers, so a grade must depend on nothing else of the response."""
    for row in rows_of("choice", "free"):
        grader, label = grader_functions(row["grader"]), row["answer"]
        gold = gold_letter(label) if row["grader"] == "choice" else normalize_answer(str(label))
        extracted = grader.extract(row["response"])
        assert grader.grade and grader.grade(row["response"], row) == (extracted == gold != ""), row


def test_an_extracted_answer_gets_the_grade_of_its_response() -> None:
    """Extraction loses nothing, and extracting twice gives the same answer."""
    for row in rows_of("choice", "free", "zebra"):
        grader = grader_functions(row["grader"])
        assert grader.grade
        extracted = grader.extract(row["response"])
        assert grader.grade(extracted, row) == grader.grade(row["response"], row), row
        assert grader.extract(extracted) == extracted
