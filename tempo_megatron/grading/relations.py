r"""Formulas with signs between them. Only a name may be lost to the left of an equals sign."""

from __future__ import annotations

import re
from collections.abc import Callable

from tempo_megatron.grading.comparison import same
from tempo_megatron.grading.formulas import is_formula
from tempo_megatron.grading.marks import written
from tempo_megatron.grading.units import read_words
from tempo_megatron.grading.values import Combination, Named, Opaque, Relation, Sequence, Value
from tempo_megatron.grading.vocabulary import GREEK

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
_SUM_OF_NAMES = re.compile(rf" *{_LETTER}(?: *[+*]? *{_LETTER})* *")
_WORDS = re.compile(r" *\\text\{([^{}]*)\} *(?:\([^()]*\) *)?")
_ANSWER = re.compile(r" *(?:the )?(?:final )?answer *", re.IGNORECASE)
_DECIMAL = re.compile(r"-?\d*\.\d+")


_SENTENCE = re.compile(r" *\\text\{([^{}]*?) (?:is|are|equals)(?: equal to)? *:? *\}")


def stated_apart(latex: str) -> tuple[str, str]:
    r"""The noun and the formula of `\text{The area is } 12`; no noun where words do not say what the formula is."""
    sentence = _SENTENCE.match(latex)
    if not sentence or not _is_name(rf"\text{{{sentence.group(1)}}}"):
        return "", latex
    return rf"\text{{{sentence.group(1)}}}", latex[sentence.end() :]


def related(sides: list[list[str]], signs: list[str], read: Callable[[list[str]], Value]) -> Value:
    """The value of sides with signs between them; `read` gives a side's own."""
    texts = [written(side) for side in sides]
    whole = Opaque(texts[0] + "".join(f"{sign}{side}" for sign, side in zip(signs, texts[1:], strict=True)))
    if not texts[-1]:
        return whole
    if not texts[0] and signs != [r"\approx "]:
        return read(sides[1]) if signs == ["="] else whole
    if set(signs) == {"="}:
        return _equal(sides, texts, read) or _relation(texts, signs) or whole
    if signs == [r"\in "] and _is_name(texts[0]):
        members = read(sides[1])
        if isinstance(members, (Combination, Sequence)) or str(members).startswith((r"\mathbb", r"\emptyset")):
            return Named(texts[0], members)
        return whole
    if r"\approx " in signs:
        return _approximate(sides, texts, signs, read) or whole
    return _relation(texts, signs) or whole


def _relation(texts: list[str], signs: list[str]) -> Relation | None:
    if not set(signs) <= {"=", "<", ">", r"\le ", r"\ge ", r"\ne "} or not all(map(is_formula, texts)):
        return None
    return Relation(tuple(text.replace(" ", "") if "\\" not in text else text for text in texts), tuple(signs))


def _equal(sides: list[list[str]], texts: list[str], read: Callable[[list[str]], Value]) -> Value | None:
    r"""What `name = value`, `(a, b) = (1, 2)` and chains such as `2+3=5` come to; None for an equation."""
    values = [read(side) for side in sides[1:]]
    last = values[-1]
    agree = all(same(last, value) for value in values[:-1])
    if _is_name(texts[0]) and (agree or all(map(_is_name, texts[1:-1]))):
        return Named(re.sub(r" ", "", texts[0]), last)
    if len(sides) == 2:
        named = _components(texts[0], last)
        if named:
            return named
    if agree and len(sides) > 2 and _SUM_OF_NAMES.fullmatch(texts[0]):
        return last
    return last if agree and same(last, read(sides[0])) else None


def _components(left: str, right: Value) -> Named | None:
    """The tuple with the names of its parts."""
    if not isinstance(right, Sequence) or right.opening != "(" or not (left.startswith("(") and left.endswith(")")):
        return None
    names = [name.replace(" ", "") for name in left[1:-1].split(",")]
    if len(names) != len(right.items) or len(names) < 2 or not all(map(_is_name, names)):
        return None
    return Named(f"({','.join(names)})", right)


def _approximate(
    sides: list[list[str]], texts: list[str], signs: list[str], read: Callable[[list[str]], Value]
) -> Value | None:
    r"""What stands before `\approx`; the decimal behind it where only a name or nothing stands before."""
    last = read(sides[-1])
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
        return Named(texts[0], last) if _is_name(texts[0]) else read(sides[0])
    return Named(texts[0], read(sides[1])) if _is_name(texts[0]) and signs[0] == "=" else None


def _is_name(text: str) -> bool:
    """A letter with its marks, a function of something, an angle or a segment, or words that are a noun."""
    words = _WORDS.fullmatch(text)
    if words:
        if _ANSWER.fullmatch(words.group(1)):
            return True
        meaning = read_words(words.group(1))
        return meaning is not None and meaning.scale == 1
    if _NAME.fullmatch(text):
        return text.strip() not in ("e", "i")
    call = _FUNCTION.fullmatch(text)
    if not call:
        return False
    letter, argument = call.groups()
    return letter in _FUNCTION_LETTERS or (
        letter not in argument and bool(_PLAIN_ARGUMENTS.fullmatch(argument.strip()))
    )
