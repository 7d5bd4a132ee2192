r"""Parses an answer's text into a value, and drops nothing: a text that no rule explains is `UnparsedText`.

math-verify's parser would drop a left side, a relation's sign, words and units. So this module splits the text first,
and math-verify's parser reads only formulas (`sympy_formulas.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from tempo_megatron.grading.math_values.latex_normalization import normalize_latex
from tempo_megatron.grading.math_values.latex_tokens import (
    OPENING_BRACKETS,
    RELATION_SIGNS,
    closing_bracket_index,
    join_tokens,
    split_outside_brackets,
    tokenize_latex,
)
from tempo_megatron.grading.math_values.numerals import normalize_numerals, parse_based_digits, parse_ratio
from tempo_megatron.grading.math_values.quantities import parse_quantity
from tempo_megatron.grading.math_values.relations import parse_relation, split_noun_sentence
from tempo_megatron.grading.math_values.values import (
    AmbiguousValue,
    NamedValue,
    Relation,
    SetOperation,
    UnparsedText,
    Value,
    ValueSequence,
)

MAX_ANSWER_CHARACTERS = 2_000
_ELLIPSES = ("...", r"\ldots")
_TRAILING_CHARACTERS = " .,;:\\"
_OPTION_LABEL = re.compile(r"\([A-H]\)(?: *(?=[\d.]|\\(?:frac|sqrt|pi|text|\$))| +(?=[-(]))|[A-H]\) *(?=[-\d.])")
_ANSWER_MARKER = re.compile(
    r"\\(?:therefore|Rightarrow|implies)(?![a-zA-Z]) *|\\text\{ *(?:final )?(?:answer|ans)(?: *: *\}|\} *:) *",
    re.IGNORECASE,
)
_CONDITION = re.compile(r" *[,(]? *\\text\{ *(?:for|where)\b")
_LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])")
_THREE_DIGIT_GROUPS = re.compile(r"[1-9]\d\d(?:,[1-9]\d\d)+")
_LIST_SEPARATORS = {",": "", ";": "", r"\lor": "or", "and": "and", "or": "or", r"\land": "and"}
_SUCH_THAT = frozenset([r"\mid", "|", ":"])
_SET_SIGNS = frozenset([r"\cup", r"\cap", r"\setminus"])
_NUMBER_SETS = frozenset(rf"\mathbb{{{letter}}}" for letter in "ZNRQ")
_ALL_REALS = re.compile(r"\\text\{(?:the )?(?:set of )?(?:all )?real(?:s| numbers)\}", re.IGNORECASE)
_MAX_SIGNS = 4
_PLUS_MINUS = {r"\pm": ("+", "-"), r"\mp": ("-", "+")}


@lru_cache(maxsize=1024)
def parse_value(text: str) -> Value:
    """Returns the value of an answer's text; `UnparsedText` if the text is not exactly one value.

    The `UnparsedText` is empty if the text is too long or its braces do not match.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        return UnparsedText("")
    try:
        latex = normalize_latex(text)
    except ValueError:
        return UnparsedText("")
    if _THREE_DIGIT_GROUPS.fullmatch(latex):
        return AmbiguousValue((_parse_answer(latex.replace(",", "")), _parse_answer(latex.replace(",", ", "))), latex)
    latex = normalize_numerals(latex).strip()
    return _parse_answer(latex if latex.endswith(_ELLIPSES) else latex.rstrip(_TRAILING_CHARACTERS))


def _parse_answer(latex: str) -> Value:
    """Returns the value of normalized LaTeX: one value or a list."""
    latex = latex[marker.end() :] if (marker := _ANSWER_MARKER.match(latex)) else latex
    label = _OPTION_LABEL.match(latex)
    latex = latex[label.end() :] if label else latex
    condition = _CONDITION.search(latex)
    if condition and _LETTER.search(latex[: condition.start()]):
        latex = latex[: condition.start()]
    items, separators = split_outside_brackets(tokenize_latex(latex), lambda token: token in _LIST_SEPARATORS)
    values = [value for item in items if join_tokens(item) for value in _parse_item(item)]
    if not values:
        return UnparsedText(latex)
    values = [values[0], *(value for value in values[1:] if not _is_condition(value, latex))]
    words = {_LIST_SEPARATORS[separator] for separator in separators}
    if (
        len(separators) == len(values) - 1
        and words in ({"or"}, {"and"})
        and all(isinstance(value, Relation) for value in values)
    ):
        sign = r"\cup" if words == {"or"} else r"\cap"
        return SetOperation(tuple(values), (sign,) * len(separators))
    return _as_list(values)


def _is_condition(value: Value, latex: str) -> bool:
    """Returns whether the value only restricts a letter of the answer, such as k to the whole numbers."""
    return isinstance(value, NamedValue) and str(value.value) in _NUMBER_SETS and latex.count(value.name) > 1


def _as_list(values: list[Value]) -> Value:
    """Returns the values as a list without repeats. The name of the first is the name of the list."""
    values = list({str(value): value for value in values}.values())
    if len(values) == 1:
        return values[0]
    first = values[0]
    if isinstance(first, NamedValue):
        names = {value.name if isinstance(value, NamedValue) else "" for value in values}
        if names <= {first.name, ""} and not any(isinstance(value, Relation) for value in values):
            unnamed = tuple(value.value if isinstance(value, NamedValue) else value for value in values)
            return NamedValue(first.name, ValueSequence("", "", unnamed))
    return ValueSequence("", "", tuple(values))


def _parse_item(tokens: list[str]) -> list[Value]:
    r"""Returns the item's value, or two or more if it has `\pm`.

    Several `\pm` are independent of each other, unless the item has `\mp` or too many signs: then all signs flip
    together.
    """
    sign_indices = [index for index, token in enumerate(tokens) if token in _PLUS_MINUS]
    if not sign_indices:
        return [_parse_relation_or_value(tokens)]
    if 1 < len(sign_indices) <= _MAX_SIGNS and r"\mp" not in tokens:
        first = sign_indices[0]
        return [
            value
            for sign in _PLUS_MINUS[r"\pm"]
            for value in _parse_item([*tokens[:first], sign, *tokens[first + 1 :]])
        ]
    return [
        _parse_relation_or_value([_PLUS_MINUS[token][side] if token in _PLUS_MINUS else token for token in tokens])
        for side in (0, 1)
    ]


def _parse_relation_or_value(tokens: list[str]) -> Value:
    sides, signs = split_outside_brackets(tokens, lambda token: token in RELATION_SIGNS)
    return (
        parse_relation(sides, [RELATION_SIGNS[sign] for sign in signs], _parse_side) if signs else _parse_side(tokens)
    )


def _parse_side(tokens: list[str]) -> Value:
    """Returns the value of tokens that have no relation sign outside of brackets."""
    while tokens and tokens[0] == " ":
        tokens = tokens[1:]
    while tokens and (tokens[-1] == " " or (tokens[-1] == "." and tokens[-2:-1] != ["."])):
        tokens = tokens[:-1]
    name, latex = split_noun_sentence(join_tokens(tokens))
    if name:
        return NamedValue(name, _parse_side(tokenize_latex(latex)))
    operands, signs = split_outside_brackets(tokens, lambda token: token in _SET_SIGNS)
    if signs:
        return SetOperation(tuple(_parse_side(operand) for operand in operands), tuple(signs))
    if tokens and tokens[0] in OPENING_BRACKETS and closing_bracket_index(tokens) == len(tokens) - 1:
        return _parse_bracketed(tokens)
    if _ALL_REALS.fullmatch(latex):
        return UnparsedText(r"\mathbb{R}")
    return parse_based_digits(latex) or parse_ratio(latex) or parse_quantity(tokens) or UnparsedText(latex)


def _parse_bracketed(tokens: list[str]) -> Value:
    """Returns the value of tokens whose first bracket closes with the last token."""
    opening, inside, closing = tokens[0], tokens[1:-1], tokens[-1]
    if opening not in ("(", "[", r"\{", "{", r"\langle"):
        return parse_quantity(tokens) or UnparsedText(join_tokens(tokens))
    if opening == r"\{" and not join_tokens(inside):
        return UnparsedText(r"\emptyset")
    conditions, such_that_signs = split_outside_brackets(inside, lambda token: token in _SUCH_THAT)
    if opening == r"\{" and such_that_signs:
        letter = join_tokens(conditions[0])
        is_known = len(letter) == 1 and letter.isalpha() and len(conditions) == 2 and letter in conditions[1]
        return _parse_answer(join_tokens(conditions[1])) if is_known else UnparsedText(join_tokens(tokens))
    items, _ = split_outside_brackets(inside, lambda token: token in _LIST_SEPARATORS)
    values = [value for item in items for value in _parse_item(item)]
    if opening == "{":
        return _as_list(values)
    if len(values) == 1 and opening in "([" and not isinstance(values[0], ValueSequence):
        return values[0]
    if any(not str(value) for value in values):
        return UnparsedText(join_tokens(tokens))
    brackets = {r"\langle": ("(", ")")}.get(opening, (opening, closing))
    return ValueSequence(*brackets, tuple(values))
