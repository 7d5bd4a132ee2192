r"""An answer's text as a value. Nothing of the text is dropped: what no rule explains makes it `Opaque`.

math-verify's parser would drop a left side, a relation's sign, words and units. So the text is taken apart here, and
the parser sees formulas alone (`formulas.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from tempo_megatron.grading.marks import OPENING, SIGNS, closed_by, marks_of, split, written
from tempo_megatron.grading.notation import plain
from tempo_megatron.grading.numerals import based, numerals, ratio
from tempo_megatron.grading.quantities import quantity
from tempo_megatron.grading.relations import related, stated_apart
from tempo_megatron.grading.values import Combination, Named, Opaque, Readings, Relation, Sequence, Value

LONGEST = 2_000  # characters
_GOES_ON = ("...", r"\ldots")
_TRAILING = " .,;:\\"
_LABEL = re.compile(r"\([A-H]\)(?: *(?=[\d.]|\\(?:frac|sqrt|pi|text|\$))| +(?=[-(]))|[A-H]\) *(?=[-\d.])")
_ANNOUNCED = re.compile(
    r"\\(?:therefore|Rightarrow|implies)(?![a-zA-Z]) *|\\text\{ *(?:final )?(?:answer|ans)(?: *: *\}|\} *:) *",
    re.IGNORECASE,
)
_CONDITION = re.compile(r" *[,(]? *\\text\{ *(?:for|where)\b")
_LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])")
_HUNDREDS = re.compile(r"[1-9]\d\d(?:,[1-9]\d\d)+")
_JOINING = {",": "", ";": "", r"\lor": "or", "and": "and", "or": "or", r"\land": "and"}
_SUCH_THAT = frozenset([r"\mid", "|", ":"])
_SET_SIGNS = frozenset([r"\cup", r"\cap", r"\setminus"])
_NUMBERS = frozenset(rf"\mathbb{{{letter}}}" for letter in "ZNRQ")
_ALL_REALS = re.compile(r"\\text\{(?:the )?(?:set of )?(?:all )?real(?:s| numbers)\}", re.IGNORECASE)
_MOST_SIGNS = 4
_PLUS_MINUS = {r"\pm": ("+", "-"), r"\mp": ("-", "+")}


@lru_cache(maxsize=1024)
def read(text: str) -> Value:
    """The value of an answer's text; `Opaque` where it says more, or something else, than a value.

    An `Opaque` without a text where it is too long, or its braces do not match.
    """
    if len(text) > LONGEST:
        return Opaque("")
    try:
        latex = plain(text)
    except ValueError:
        return Opaque("")
    if _HUNDREDS.fullmatch(latex):
        return Readings((_answer(latex.replace(",", "")), _answer(latex.replace(",", ", "))), latex)
    latex = numerals(latex).strip()
    return _answer(latex if latex.endswith(_GOES_ON) else latex.rstrip(_TRAILING))


def _answer(latex: str) -> Value:
    """The value of plain LaTeX: one value, or several side by side."""
    latex = latex[announced.end() :] if (announced := _ANNOUNCED.match(latex)) else latex
    label = _LABEL.match(latex)
    latex = latex[label.end() :] if label else latex
    condition = _CONDITION.search(latex)
    if condition and _LETTER.search(latex[: condition.start()]):
        latex = latex[: condition.start()]
    items, joints = split(marks_of(latex), lambda mark: mark in _JOINING)
    values = [value for item in items if written(item) for value in _signs_apart(item)]
    if not values:
        return Opaque(latex)
    values = [values[0], *(value for value in values[1:] if not _is_condition(value, latex))]
    words = {_JOINING[joint] for joint in joints}
    if (
        len(joints) == len(values) - 1
        and words in ({"or"}, {"and"})
        and all(isinstance(value, Relation) for value in values)
    ):
        sign = r"\cup" if words == {"or"} else r"\cap"
        return Combination(tuple(values), (sign,) * len(joints))
    return _together(values)


def _is_condition(value: Value, latex: str) -> bool:
    """Whether it only says which numbers a letter of the answer stands for: k in the whole numbers."""
    return isinstance(value, Named) and str(value.value) in _NUMBERS and latex.count(value.name) > 1


def _together(values: list[Value]) -> Value:
    """Values side by side: repeats are one, and a name before them is the name of all."""
    values = list({str(value): value for value in values}.values())
    if len(values) == 1:
        return values[0]
    first = values[0]
    if isinstance(first, Named):
        names = {value.name if isinstance(value, Named) else "" for value in values}
        if names <= {first.name, ""} and not any(isinstance(value, Relation) for value in values):
            bare = tuple(value.value if isinstance(value, Named) else value for value in values)
            return Named(first.name, Sequence("", "", bare))
    return Sequence("", "", tuple(values))


def _signs_apart(marks: list[str]) -> list[Value]:
    r"""The item's value, or both of them where it has `\pm`. Several `\pm` are independent, but for `\mp`."""
    signed = [index for index, mark in enumerate(marks) if mark in _PLUS_MINUS]
    if not signed:
        return [_item(marks)]
    if 1 < len(signed) <= _MOST_SIGNS and r"\mp" not in marks:
        first = signed[0]
        return [
            value for sign in _PLUS_MINUS[r"\pm"] for value in _signs_apart([*marks[:first], sign, *marks[first + 1 :]])
        ]
    return [_item([_PLUS_MINUS[mark][side] if mark in _PLUS_MINUS else mark for mark in marks]) for side in (0, 1)]


def _item(marks: list[str]) -> Value:
    sides, signs = split(marks, lambda mark: mark in SIGNS)
    return related(sides, [SIGNS[sign] for sign in signs], _value) if signs else _value(marks)


def _value(marks: list[str]) -> Value:
    """The value of marks that have no sign of a relation outside of brackets."""
    while marks and marks[0] == " ":
        marks = marks[1:]
    while marks and (marks[-1] == " " or (marks[-1] == "." and marks[-2:-1] != ["."])):
        marks = marks[:-1]
    name, latex = stated_apart(written(marks))
    if name:
        return Named(name, _value(marks_of(latex)))
    operands, signs = split(marks, lambda mark: mark in _SET_SIGNS)
    if signs:
        return Combination(tuple(_value(operand) for operand in operands), tuple(signs))
    if marks and marks[0] in OPENING and closed_by(marks) == len(marks) - 1:
        return _bracketed(marks)
    if _ALL_REALS.fullmatch(latex):
        return Opaque(r"\mathbb{R}")
    return based(latex) or ratio(latex) or quantity(marks) or Opaque(latex)


def _bracketed(marks: list[str]) -> Value:
    opening, inside, closing = marks[0], marks[1:-1], marks[-1]
    if opening not in ("(", "[", r"\{", "{", r"\langle"):
        return quantity(marks) or Opaque(written(marks))
    if opening == r"\{" and not written(inside):
        return Opaque(r"\emptyset")
    conditions, builds = split(inside, lambda mark: mark in _SUCH_THAT)
    if opening == r"\{" and builds:
        letter = written(conditions[0])
        known = len(letter) == 1 and letter.isalpha() and len(conditions) == 2 and letter in conditions[1]
        return _answer(written(conditions[1])) if known else Opaque(written(marks))
    items, _ = split(inside, lambda mark: mark in _JOINING)
    values = [value for item in items for value in _signs_apart(item)]
    if opening == "{":
        return _together(values)
    if len(values) == 1 and opening in "([" and not isinstance(values[0], Sequence):
        return values[0]
    if any(not str(value) for value in values):
        return Opaque(written(marks))
    brackets = {r"\langle": ("(", ")")}.get(opening, (opening, closing))
    return Sequence(*brackets, tuple(values))
