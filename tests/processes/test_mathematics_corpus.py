"""Mathematical answers of the whole fixtures, by hand, beside math-verify, and by workers as in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from math_verify import parse, verify

from tempo_megatron.config import GradingConfig
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.grading import RolloutGrader, pool
from tempo_megatron.grading.graders import grader_functions
from tempo_megatron.grading.mathematics import extract, grade
from tests.clock import ProcessorTime

FIXTURES = Path(__file__).parents[1] / "fixtures" / "grading"
ROWS = [json.loads(line) for line in (FIXTURES / "mathematics.jsonl").read_text().splitlines()]
KINDS = [json.loads(line) for line in (FIXTURES / "kinds.jsonl").read_text().splitlines()]
CASES = [
    case
    for line in (FIXTURES / "cases.jsonl").read_text().splitlines()
    if (case := json.loads(line))["grader"] == "math"
]
HOSTILE = [row for row in ROWS if row.get("differs") == "hostile"]
HONEST = [row for row in ROWS if row.get("differs") != "hostile"]


def response_text(row: dict[str, Any]) -> str:
    """Returns the row's response. A long one is stored as a repeated text with its ends."""
    response = row["response"]
    if isinstance(response, str):
        return response
    return response["before"] + response["repeat"] * response["times"] + response["after"]


def grades(rows: list[dict[str, Any]], config: GradingConfig) -> tuple[list[bool], RolloutGrader]:
    texts = [response_text(row) for row in rows]
    rollouts = [Rollout(Prompt(str(i), (0,), "here", "math"), 0, (i,), (0.0,), "stop") for i in range(len(rows))]
    with pytest.MonkeyPatch.context() as patch, RolloutGrader(lambda ids: texts[ids[0]], config) as grader:
        patch.setattr(pool, "time", ProcessorTime(config.workers))
        rewards = grader.grade(rollouts, {str(i): {"answer": row["gold"]} for i, row in enumerate(rows)})
    return [bool(reward) for reward in rewards], grader


def test_the_fixture_has_enough_right_and_wrong_pairs() -> None:
    """It has at least 200 distinct pairs, 80 of them right and 80 wrong, and only known marks."""
    assert len({(row["gold"], str(row["response"])) for row in ROWS}) == len(ROWS) >= 200
    assert min(sum(row["right"] for row in ROWS), sum(not row["right"] for row in ROWS)) >= 80
    marks = {row.get("differs") for row in ROWS}
    assert marks == {None, "strict", "hostile", "math-verify is wrong"}


def test_honest_answers_get_the_grades_of_the_fixture_and_of_math_verify() -> None:
    """Our grade is the row's. It is math-verify's too unless the row is marked, and each mark is needed."""
    our_grades, grader = grades(HONEST, GradingConfig(workers=1))
    for row, ours in zip(HONEST, our_grades, strict=True):
        # math-verify's own time limits use wall-clock time.
        gold, response = (parse(text, parsing_timeout=None) for text in (row["gold"], response_text(row)))
        reference = verify(gold, response, timeout_seconds=None)
        assert ours == row["right"], f"ours: {row}"
        assert (ours == reference) == ("differs" not in row), f"math-verify: {row}"
    assert (grader.errors, grader.timeouts) == (0, 0)


def test_hostile_answers_cost_their_own_grades_and_no_more() -> None:
    """Power towers, huge sums and 100 kB texts among honest rows: all get the right grade within the limits."""
    honest = [row for row in HONEST if "differs" not in row][:40]
    rows = [row for pair in zip(HOSTILE, honest, strict=False) for row in pair]
    our_grades, grader = grades(rows, GradingConfig(workers=2, time_limit_seconds=1))
    assert [(row["note"], grade) for row, grade in zip(rows, our_grades, strict=True)] == [
        (row["note"], row["right"]) for row in rows
    ]
    assert 1 <= grader.timeouts < len(HOSTILE)


def grade_as_in_a_run(text: str, answer: dict[str, Any]) -> bool:
    """Returns the grade after the removal of thinking, as in a run."""
    run_grade = grader_functions("math").grade
    assert run_grade
    return run_grade(text, answer)


def test_pairs_of_each_kind_get_the_verdicts_by_hand() -> None:
    """The kinds are relations, qualified values, names, units, sets, prose, boxes and text beside boxes."""
    assert len(KINDS) > 400
    for case in KINDS:
        assert grade_as_in_a_run(case["response"], case) is case["correct"], case


def test_extraction_and_grade_agree() -> None:
    """Votes count values: an extracted answer gets its response's grade, and equal values extract equally."""
    for case in CASES + KINDS:
        value = extract(case["response"])
        assert grade(rf"\boxed{{{value}}}", case) is grade(case["response"], case), case
    assert {extract("The answer is 42**"), extract("The answer is 42."), extract("\\boxed{42.0}")} == {"42"}
    assert {extract("The answer is 1/2."), extract("\\boxed{\\frac12}"), extract("\\boxed{\\frac{2}{4}}")} == {
        r"\frac{1}{2}"
    }
