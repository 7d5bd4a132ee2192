"""Mathematics against a fixture whose rows were decided by hand, and against math-verify itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from math_verify import parse, verify

from tempo_megatron.config import GradingConfig
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.grading import Grader, pool
from tempo_megatron.grading.mathematics import equivalent, extract
from tests.clock import ProcessorTime

FIXTURE = Path(__file__).parents[1] / "fixtures" / "grading" / "mathematics.jsonl"
ROWS = [json.loads(line) for line in FIXTURE.read_text().splitlines()]
HOSTILE = [row for row in ROWS if row.get("differs") == "hostile"]
HONEST = [row for row in ROWS if row.get("differs") != "hostile"]


def text(row: dict[str, Any]) -> str:
    response = row["response"]
    if isinstance(response, str):
        return response
    return response["before"] + response["repeat"] * response["times"] + response["after"]


def grades(rows: list[dict[str, Any]], config: GradingConfig) -> tuple[list[bool], Grader]:
    texts = [text(row) for row in rows]
    rollouts = [Rollout(Prompt(str(i), (0,), "here", "math"), 0, (i,), (0.0,), "stop") for i in range(len(rows))]
    with pytest.MonkeyPatch.context() as patch, Grader(lambda ids: texts[ids[0]], config) as grader:
        patch.setattr(pool, "time", ProcessorTime(config.workers))
        found = grader.grade(rollouts, {str(i): {"answer": row["gold"]} for i, row in enumerate(rows)})
    return [bool(grade) for grade in found], grader


def test_the_fixture_is_what_it_claims() -> None:
    """At least 200 different pairs, right and wrong ones; marks are known."""
    assert len({(row["gold"], str(row["response"])) for row in ROWS}) == len(ROWS) >= 200
    assert min(sum(row["right"] for row in ROWS), sum(not row["right"] for row in ROWS)) >= 80
    marks = {row.get("differs") for row in ROWS}
    assert marks == {None, "strict", "hostile", "math-verify is wrong", "both are wrong"}


def test_honest_answers_are_graded_as_the_fixture_and_as_math_verify() -> None:
    """Our grade is the mathematics'; where nothing is marked it is math-verify's too, and each mark is still needed."""
    found, grader = grades(HONEST, GradingConfig(workers=1))
    for row, ours in zip(HONEST, found, strict=True):
        # Its own limits are those of a clock on the wall.
        gold, response = (parse(given, parsing_timeout=None) for given in (row["gold"], text(row)))
        reference = verify(gold, response, timeout_seconds=None)
        right = row["right"] != (row.get("differs") == "both are wrong")
        agrees = row.get("differs") in (None, "both are wrong")
        assert ours == right, f"ours: {row}"
        assert (ours == reference) == agrees, f"math-verify: {row}"
    assert (grader.errors, grader.timeouts) == (0, 0)


def test_hostile_answers_cost_their_own_grades_and_no_more() -> None:
    """Towers, bombs and 100 kB texts, with honest rows between: all are graded, within limits, and rightly."""
    honest = [row for row in HONEST if "differs" not in row][:40]
    rows = [row for pair in zip(HOSTILE, honest, strict=False) for row in pair]
    found, grader = grades(rows, GradingConfig(workers=2, time_limit_seconds=1))
    assert [(row["note"], grade) for row, grade in zip(rows, found, strict=True)] == [
        (row["note"], row["right"]) for row in rows
    ]
    assert 1 <= grader.timeouts < len(HOSTILE)


def test_extracted_answers_compare_by_value() -> None:
    """Clusters of mathematics are of values, in whatever form."""
    assert equivalent(extract("so \\boxed{\\frac12}"), extract("The answer is 0.5"))
    assert equivalent(extract("\\boxed{3} or \\boxed{5}"), extract("x = 5 or x = 3"))
    assert not equivalent(extract("\\boxed{(1,2)}"), extract("\\boxed{[1,2]}"))
    assert extract("I do not know") == ""
