r"""Parses equations, inequalities and chains of them. Only a name may be dropped from the left of an equals sign."""

from __future__ import annotations

import re
from collections.abc import Callable

from tempo_megatron.grading.math_values.comparison import same_value
from tempo_megatron.grading.math_values.latex_tokens import join_tokens
from tempo_megatron.grading.math_values.sympy_formulas import is_readable_formula
from tempo_megatron.grading.math_values.units import parse_unit_words
from tempo_megatron.grading.math_values.values import (
    NamedValue,
    Relation,
    SetOperation,
    UnparsedText,
    Value,
    ValueSequence,
)
from tempo_megatron.grading.math_values.vocabulary import GREEK

_GREEK = rf"\\(?:{'|'.join(sorted(GREEK | {'ell'}))})(?![a-zA-Z])"
_LETTER = rf"(?:[a-zA-Z]|{_GREEK})"
_SUBSCRIPT = r"(?: *_ *\{[^{}]*\})?'*(?:\^\{(?:'|\\prime|\*|-1)\})?"
_NAME = re.compile(
    rf" *(?:{_LETTER}{_SUBSCRIPT}|\\(?:overline|hat|vec|tilde|mathbf|widehat|overrightarrow) *\{{[^{{}}]*\}}"
    rf"|(?:\\(?:angle|triangle|measuredangle|overline|m) *)*[A-Z]{{1,4}}|m *\\angle *[A-Z]{{1,3}}"
    rf"|(?:\\mathbb\{{[EP]\}}|[EP]) *\[[^\[\]]*\]|{_LETTER}(?: *: *{_LETTER})+|\\frac\{{d[a-z]\}}\{{d[a-z]\}}) *"
)
_FUNCTION = re.compile(rf" *({_LETTER}){_SUBSCRIPT} *\( *([^()]*(?:\([^()]*\))?[^()]*) *\) *")
_FUNCTION_LETTERS = frozenset("fghFGHPQpqrSTVEuvw")
_PLAIN_ARGUMENTS = re.compile(rf"{_LETTER}|\d+|(?:{_LETTER}|\d+)(?: *, *(?:{_LETTER}|\d+))+")
_SUM_OF_LETTERS = re.compile(rf" *{_LETTER}(?: *[+*]? *{_LETTER})* *")
_WORDS = re.compile(r" *\\text\{([^{}]*)\} *(?:\([^()]*\) *)?")
_ANSWER = re.compile(r" *(?:the )?(?:final )?answer *", re.IGNORECASE)
_DECIMAL = re.compile(r"-?\d*\.\d+")


_SENTENCE = re.compile(r" *\\text\{([^{}]*?) (?:is|are|equals)(?: equal to)? *:? *\}")


def split_noun_sentence(latex: str) -> tuple[str, str]:
    r"""Returns the noun and the formula of `\text{The area is } 12`.

    The noun is "", and the formula all of the text, if the words do not name the formula.
    """
    sentence = _SENTENCE.match(latex)
    if not sentence or not _is_name(rf"\text{{{sentence.group(1)}}}"):
        return "", latex
    return rf"\text{{{sentence.group(1)}}}", latex[sentence.end() :]


def parse_relation(sides: list[list[str]], signs: list[str], parse_side: Callable[[list[str]], Value]) -> Value:
    """Returns the value of sides with relation signs between them. `parse_side` returns the value of one side."""
    texts = [join_tokens(side) for side in sides]
    unparsed = UnparsedText(texts[0] + "".join(f"{sign}{side}" for sign, side in zip(signs, texts[1:], strict=True)))
    if not texts[-1]:
        return unparsed
    if not texts[0] and signs != [r"\approx "]:
        return parse_side(sides[1]) if signs == ["="] else unparsed
    if set(signs) == {"="}:
        return _parse_equality(sides, texts, parse_side) or _parse_formulas(texts, signs) or unparsed
    if signs == [r"\in "] and _is_name(texts[0]):
        members = parse_side(sides[1])
        if isinstance(members, (SetOperation, ValueSequence)) or str(members).startswith((r"\mathbb", r"\emptyset")):
            return NamedValue(texts[0], members)
        return unparsed
    if r"\approx " in signs:
        return _parse_approximation(sides, texts, signs, parse_side) or unparsed
    return _parse_formulas(texts, signs) or unparsed


def _parse_formulas(texts: list[str], signs: list[str]) -> Relation | None:
    """Returns the relation between formulas; None if a side is no formula or a sign is no equality or inequality."""
    if not set(signs) <= {"=", "<", ">", r"\le ", r"\ge ", r"\ne "} or not all(map(is_readable_formula, texts)):
        return None
    return Relation(tuple(text.replace(" ", "") if "\\" not in text else text for text in texts), tuple(signs))


def _parse_equality(sides: list[list[str]], texts: list[str], parse_side: Callable[[list[str]], Value]) -> Value | None:
    """Returns the value of `name = value`, `(a, b) = (1, 2)` and chains such as `2+3=5`; None for an equation."""
    values = [parse_side(side) for side in sides[1:]]
    last = values[-1]
    agree = all(same_value(last, value) for value in values[:-1])
    if _is_name(texts[0]) and (agree or all(map(_is_name, texts[1:-1]))):
        return NamedValue(re.sub(r" ", "", texts[0]), last)
    if len(sides) == 2:
        named = _named_components(texts[0], last)
        if named:
            return named
    if agree and len(sides) > 2 and _SUM_OF_LETTERS.fullmatch(texts[0]):
        return last
    return last if agree and same_value(last, parse_side(sides[0])) else None


def _named_components(left: str, right: Value) -> NamedValue | None:
    """Returns the tuple `right` with the names of its components; None if `left` is no tuple of as many names."""
    if (
        not isinstance(right, ValueSequence)
        or right.opening != "("
        or not (left.startswith("(") and left.endswith(")"))
    ):
        return None
    names = [name.replace(" ", "") for name in left[1:-1].split(",")]
    if len(names) != len(right.items) or len(names) < 2 or not all(map(_is_name, names)):
        return None
    return NamedValue(f"({','.join(names)})", right)


def _parse_approximation(
    sides: list[list[str]], texts: list[str], signs: list[str], parse_side: Callable[[list[str]], Value]
) -> Value | None:
    r"""Returns the value before `\approx`, or the decimal after it if only a name or nothing stands before."""
    last = parse_side(sides[-1])
    if (
        signs[-1] != r"\approx "
        or len(signs) > 2
        or signs[0] not in ("=", r"\approx ")
        or not _DECIMAL.fullmatch(str(last))
    ):
        return None
    if len(signs) == 1:
        if not texts[0]:
            return last
        return NamedValue(texts[0], last) if _is_name(texts[0]) else parse_side(sides[0])
    return NamedValue(texts[0], parse_side(sides[1])) if _is_name(texts[0]) and signs[0] == "=" else None


def _is_name(text: str) -> bool:
    """Returns whether the text is a letter with its marks, a function call, an angle, a segment, or a noun."""
    words = _WORDS.fullmatch(text)
    if words:
        if _ANSWER.fullmatch(words.group(1)):
            return True
        unit_words = parse_unit_words(words.group(1))
        return unit_words is not None and unit_words.scale == 1
    if _NAME.fullmatch(text):
        return text.strip() not in ("e", "i")
    call = _FUNCTION.fullmatch(text)
    if not call:
        return False
    letter, argument = call.groups()
    return letter in _FUNCTION_LETTERS or (
        letter not in argument and bool(_PLAIN_ARGUMENTS.fullmatch(argument.strip()))
    )
