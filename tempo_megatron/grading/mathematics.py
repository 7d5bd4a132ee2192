r"""The grader `math`: compares a response's final answer with the label by value.

The answer is the last box with the boxes that belong to it (`boxes.py`), else what prose states (`math_prose.py`).
`math_values/` parses the answer's text into a value, drops nothing of it, and compares values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tempo_megatron.grading.boxes import closing_boxes
from tempo_megatron.grading.label_text import label_text
from tempo_megatron.grading.math_prose import parse_stated_value
from tempo_megatron.grading.math_values.comparison import same_value
from tempo_megatron.grading.math_values.latex_normalization import normalize_latex
from tempo_megatron.grading.math_values.parser import MAX_ANSWER_CHARACTERS, parse_value
from tempo_megatron.grading.math_values.sympy_formulas import parse_formula
from tempo_megatron.grading.math_values.values import (
    AmbiguousValue,
    NamedValue,
    Quantity,
    SetOperation,
    UnparsedText,
    Value,
    ValueSequence,
)

_EATEN_BACKSLASH = re.compile(r"[\t\r]|\n(?=eq|e\b|u\b|abla|ot\b|mid|i\b)")
"""What JSON makes of \\text, \\right, \\ne and the like. `label_text` finds the other control characters."""
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Returns whether the final answer equals `answer["answer"]`: LaTeX, with or without dollars, or a number."""
    value = _final_value(text)
    return value is not None and same_value(parse_value(str(answer["answer"])), value)


def extract(text: str) -> str:
    """Returns the final answer's value in its canonical LaTeX, which parses to the same value; "" if there is none."""
    value = _final_value(text)
    return "" if value is None else str(value)


def equivalent(first: str, second: str) -> bool:
    """Returns whether two extracted answers have the same value."""
    return same_value(parse_value(first), parse_value(second))


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    text = label_text(answer)
    if text.lower() == "nan":
        raise ValueError("the label is NaN, which is not a number")
    if _EATEN_BACKSLASH.search(str(answer["answer"]).rstrip()):
        raise ValueError(
            f"the label {text!r:.80} has a tab or a line end where a backslash is lost: JSON wants \\\\ for \\"
        )
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise ValueError(f"the label has {len(text)} characters; at most {MAX_ANSWER_CHARACTERS} are read")
    try:
        normalize_latex(text)
    except ValueError as error:
        raise ValueError(f"the label {text!r:.80} is broken LaTeX: {error}") from error
    for formula in _formulas(parse_value(text)):
        if not _DIGITS.fullmatch(formula):
            parse_formula(formula)  # raises ValueError
    if not grade(rf"\boxed{{{text}}}", answer):
        raise ValueError(f"the label {text!r:.80} states no value")


def _final_value(text: str) -> Value | None:
    """Returns the value of the final answer in `<answer>` tags, in boxes or in prose; None if there is none."""
    _, opening, tagged = text.rpartition("<answer>")
    if opening:
        text = tagged.partition("</answer>")[0]
    boxes = closing_boxes(text)
    if not boxes:
        return parse_value(text.strip()) if opening and len(text) < MAX_ANSWER_CHARACTERS else parse_stated_value(text)
    if sum(map(len, boxes)) > MAX_ANSWER_CHARACTERS:
        return None
    value = parse_value(", ".join(boxes))
    return None if value == UnparsedText("") else value


def _formulas(value: Value) -> Iterator[str]:
    """Yields the formulas in a value that math-verify's parser must read."""
    if isinstance(value, Quantity):
        yield value.latex
    elif isinstance(value, NamedValue):
        yield from _formulas(value.value)
    elif isinstance(value, (ValueSequence, SetOperation, AmbiguousValue)):
        parts = {ValueSequence: "items", SetOperation: "operands", AmbiguousValue: "values"}[type(value)]
        for part in getattr(value, parts):
            yield from _formulas(part)
