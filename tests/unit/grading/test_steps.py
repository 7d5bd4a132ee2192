"""No response makes a grader slow: the steps of its patterns grow linearly with the response's length."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tempo_megatron.grading import (
    answer_normalization,
    answer_statements,
    boxes,
    choice,
    free,
    graders,
    option_letters,
    thinking,
    zebra,
)
from tests.regex_steps import StepCounter

READERS = [
    choice.extract,
    free.extract,
    zebra.extract,
    thinking.after_thinking,
    answer_normalization.normalize_answer,
    graders.final_answer_text,
]
UNITS = [*"({\\$*_['", "a,", "1,", "1.", "A,", "=x", "x=", "-1", "a->b", "a<b", "yes ", "no. ", "1:{", "\u7b54\u6848"]
UNITS += [
    "</think>",
    "<think>",
    "<answer>",
    "\\boxed{",
    "\\boxed{A} ",
    " ",
    "\n",
    " \t",
    "answer ",
    "answer is ",
    "answer\n",
]
UNITS += ["A ", "(A) or ", "1. a ", "- ", "not A, ", "or, ", ", ", "A or, ", "A, or, B, ", "a: ", "<b>"]
UNITS += ['{"a":', '"House 1": {', '"House 1": {"a": "b"}', '"House 1": {"a": ', "or\n{", "is ", "x = ", "maybe B "]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> StepCounter:
    """Returns a counter of the steps in all modules that read responses.

    The limit of a statement's length is low, so that short texts exceed it.
    """
    for module in (answer_normalization, choice, free, answer_statements):
        monkeypatch.setattr(module, "MAX_STATEMENT_CHARACTERS", 20)
    counter = StepCounter()
    counter.install(
        monkeypatch, [answer_normalization, answer_statements, boxes, choice, free, option_letters, thinking, zebra]
    )
    return counter


@pytest.mark.parametrize("unit", UNITS)
def test_steps_grow_linearly_with_the_response(counter: StepCounter, unit: str) -> None:
    """A quadratic pattern takes hours on 100 kB of repeated text. Twice the text must take twice the steps."""
    for read in READERS:
        steps = []
        for length in (100, 200):
            counter.steps = 0
            read("answer is " + unit * (length // len(unit)) + "!")
            steps.append(counter.steps)
        assert steps[1] < 2.6 * steps[0] + 100, (read.__module__, steps)


def test_the_counter_detects_a_quadratic_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, the test above could not fail."""
    module = ModuleType("quadratic")
    module.pattern = re.compile(r"\s+$")  # type: ignore[attr-defined]
    counter = StepCounter()
    counter.install(monkeypatch, [module])
    steps = []
    for length in (100, 200):
        counter.steps = 0
        module.pattern.search(" " * length + "!")
        steps.append(counter.steps)
    assert steps[1] > 3.5 * steps[0]
