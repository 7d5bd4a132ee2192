"""No pattern is more than linear in a response's length: steps are counted, not seconds."""

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
    for module in (boxes, mathematics, answer_statements)
    for name, pattern in vars(module).items()
    if isinstance(pattern, re.Pattern)
]


def growth(pattern: re.Pattern[str], unit: str, length: int = 250) -> float:
    """How many times as many steps a text of twice the length takes."""
    few, many = (steps(pattern, (unit * size)[:size] + "!") for size in (length, 2 * length))
    return many / few


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_take_steps_in_proportion_to_the_text(pattern: re.Pattern[str]) -> None:
    """A response of 10,000 digits must not cost a worker."""
    assert max(growth(pattern, unit) for unit in UNITS) < 2.5


def test_the_counter_sees_what_is_not_linear() -> None:
    """The pattern by which trailing numbers were found before, and another that backtracks."""
    number = r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?"
    assert growth(re.compile(rf"{number}(?:, {number})+"), "1", 40) > 3
    assert growth(re.compile(r"\s+$"), " ", 100) > 3
    assert growth(re.compile(r"\d"), "1") < 2.1


@pytest.mark.parametrize("unit", UNITS)
def test_what_reads_an_answer_sees_a_bounded_text(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns of other modules meet an answer of limited length, whatever the response's is."""
    lengths = []
    normalize_latex = parser.normalize_latex
    monkeypatch.setattr(parser, "normalize_latex", lambda latex: lengths.append(len(latex)) or normalize_latex(latex))
    parser.parse_value.cache_clear()
    for text in (unit * 20_000, "The answer is " + unit * 20_000, "\\boxed{" + unit * 20_000, "x = " + unit * 20_000):
        mathematics.extract(text)
    assert max(lengths, default=0) <= parser.MAX_ANSWER_CHARACTERS
    assert max(answer_statements.MAX_STATEMENT_CHARACTERS, parser.MAX_ANSWER_CHARACTERS) <= 2_000
