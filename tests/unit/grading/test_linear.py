"""The steps of each pattern that meets a whole response grow linearly with the response's length."""

from __future__ import annotations

import re

import pytest

from tempo_megatron.grading import answer_statements, boxes, mathematics
from tempo_megatron.grading.math_values import parser
from tests.regex_steps import steps

UNITS = ("1", " ", "a", "1,", "answer ", "answer is ", "answer is not ", "\\boxed{", "\\boxed ", "{", "\\", "#", "\n",
         "* ", "a+b=", "a+", "\\text{", "?", "} ", "$", "-", "not ", "option ")  # fmt: skip
PATTERNS = [
    pytest.param(pattern, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module, names in (
        (boxes, vars(boxes)),
        (mathematics, vars(mathematics)),
        (answer_statements, ["_DISPLAY_START", "_DENIED"]),
    )
    for name in names
    if isinstance(pattern := getattr(module, name), re.Pattern)
]


def growth(pattern: re.Pattern[str], unit: str, length: int = 120) -> float:
    """Returns the ratio of steps for a text of twice the length to steps for the text."""
    few, many = (steps(pattern, (unit * size)[:size] + "!") for size in (length, 2 * length))
    return many / few


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_take_steps_in_proportion_to_the_text(pattern: re.Pattern[str]) -> None:
    """A response of 10,000 digits must not exceed the time limit."""
    assert max(growth(pattern, unit) for unit in UNITS) < 2.5


def test_the_counter_detects_superlinear_patterns() -> None:
    """Both a list of numbers and trailing blanks make a pattern backtrack."""
    number = r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?"
    assert growth(re.compile(rf"{number}(?:, {number})+"), "1", 40) > 3
    assert growth(re.compile(r"\s+$"), " ", 100) > 3
    assert growth(re.compile(r"\d"), "1") < 2.1


@pytest.mark.parametrize("unit", UNITS)
def test_the_parser_gets_a_text_of_bounded_length(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns of other modules see an answer of limited length, whatever the response's length."""
    lengths = []
    normalize_latex = parser.normalize_latex
    monkeypatch.setattr(parser, "normalize_latex", lambda latex: lengths.append(len(latex)) or normalize_latex(latex))
    parser.parse_value.cache_clear()
    for text in (unit * 20_000, "The answer is " + unit * 20_000, "\\boxed{" + unit * 20_000, "x = " + unit * 20_000):
        mathematics.extract(text)
    assert max(lengths, default=0) <= parser.MAX_ANSWER_CHARACTERS
    assert max(answer_statements.MAX_STATEMENT_CHARACTERS, parser.MAX_ANSWER_CHARACTERS) <= 2_000
