r"""Mathematics: a response's final answer as one value, compared with the label's.

The answer is the last box, with the boxes that stand with it, or what prose states. `reading.py` takes its text apart,
so that nothing of it is lost; math-verify's parser reads the formulas that are left; `comparison.py` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tempo_megatron.grading.comparison import same
from tempo_megatron.grading.final_answer import closing_boxes
from tempo_megatron.grading.formulas import expression
from tempo_megatron.grading.notation import plain
from tempo_megatron.grading.plain_labels import plain_label
from tempo_megatron.grading.reading import LONGEST, read
from tempo_megatron.grading.statement import stated_value
from tempo_megatron.grading.values import Combination, Named, Opaque, Quantity, Readings, Sequence, Value

_EATEN_BACKSLASH = re.compile(r"[\t\r]|\n(?=eq|e\b|u\b|abla|ot\b|mid|i\b)")
"""of \\text, \\right, \\ne and the like; `plain_label` finds the other control characters"""
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether the response's final answer equals `answer["answer"]`: LaTeX, with or without dollars, or a number."""
    value = _final_value(text)
    return value is not None and same(read(str(answer["answer"])), value)


def extract(text: str) -> str:
    """The final answer's value in one form of LaTeX, from which it is read again; "" for none."""
    value = _final_value(text)
    return "" if value is None else str(value)


def equivalent(one: str, other: str) -> bool:
    """Whether two extracted answers have the same value."""
    return same(read(one), read(other))


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    text = plain_label(answer)
    if text.lower() == "nan":
        raise ValueError("the label is NaN, which is no number")
    if _EATEN_BACKSLASH.search(str(answer["answer"]).rstrip()):
        raise ValueError(
            f"the label {text!r:.80} has a tab or a line end where a backslash is lost: JSON wants \\\\ for \\"
        )
    if len(text) > LONGEST:
        raise ValueError(f"the label has {len(text)} characters; at most {LONGEST} are read")
    try:
        plain(text)
    except ValueError as error:
        raise ValueError(f"the label {text!r:.80} is broken LaTeX: {error}") from error
    for formula in _formulas(read(text)):
        if not _DIGITS.fullmatch(formula):
            expression(formula)  # raises ValueError
    if not grade(rf"\boxed{{{text}}}", answer):
        raise ValueError(f"the label {text!r:.80} states no value")


def _final_value(text: str) -> Value | None:
    _, opening, tagged = text.rpartition("<answer>")
    if opening:
        text = tagged.partition("</answer>")[0]
    boxes = closing_boxes(text)
    if not boxes:
        return read(text.strip()) if opening and len(text) < LONGEST else stated_value(text)
    if sum(map(len, boxes)) > LONGEST:
        return None
    value = read(", ".join(boxes))
    return None if value == Opaque("") else value


def _formulas(value: Value) -> Iterator[str]:
    """The formulas in a value that the parser will be asked to read."""
    if isinstance(value, Quantity):
        yield value.latex
    elif isinstance(value, Named):
        yield from _formulas(value.value)
    elif isinstance(value, (Sequence, Combination, Readings)):
        parts = {Sequence: "items", Combination: "operands", Readings: "values"}[type(value)]
        for part in getattr(value, parts):
            yield from _formulas(part)
