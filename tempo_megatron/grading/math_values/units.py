r"""Parses the words beside a number: a unit, a number to multiply by, or words that change the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from tempo_megatron.grading.math_values.vocabulary import FILLERS, MEASURES, QUALIFIERS, SCALES, SPELLINGS

_UNINFORMATIVE_NOUNS = frozenset(["unit", "number", "value"])
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[€£¥₹¢$°%]")  # noqa: RUF001
_POWER = re.compile(r"\^ ?([23])")
_MARKUP = re.compile(r"\\text|\\(?=[$%])|[{}]")
_AM_PM = re.compile(r"\b([ap])\.m\b\.?")
_IGNORED_CHARACTERS = re.compile(r"[\s./()\[\]'’-]")  # noqa: RUF001
_POWERS = {"powerpower": 2, "powerpowerpower": 3, "square": 2, "sq": 2, "cubic": 3, "cu": 3}
_MAX_WORDS = 4
_CHINESE_SCALE = re.compile(r"[万萬亿億]|千(?![米克瓦卡])|百(?!分)")
_CHINESE_QUALIFIER = re.compile(
    r"以上|以下|以内|左右|上下|至少|至多|最多|最少|大约|大于|小于|超过|不是|不等|不足|不到|不止|错|或|(?:^|\s)[约多余]"
)


@dataclass(frozen=True)
class Unit:
    """A unit of measurement with its factor to the dimension's base unit, or a counted noun."""

    dimension: str
    factor: Fraction
    label: str

    def is_empty(self) -> bool:
        """Returns whether the unit has neither a dimension nor a noun."""
        return not self.dimension and not self.label


@dataclass(frozen=True)
class UnitWords:
    """The meaning of the words beside a number: a number to multiply by, and a unit."""

    scale: int
    unit: Unit | None


def separate_chinese_scales(words: str) -> str:
    """Returns the words with a blank after each Chinese scale word, because Chinese writes none."""
    return _CHINESE_SCALE.sub(r"\g<0> ", words)


def parse_unit_words(text: str) -> UnitWords | None:
    r"""Returns the words' meaning; None if they hold more than a unit: a denial, hedge, comparison or fraction."""
    plain_text = _POWER.sub(lambda match: f" {'power' * int(match.group(1))} ", _MARKUP.sub("", text))
    plain_text = separate_chinese_scales(_AM_PM.sub(r"\1m", plain_text))
    words = _WORD.findall(plain_text)
    if (
        _IGNORED_CHARACTERS.sub("", _WORD.sub("", plain_text))
        or len(words) > 2 * _MAX_WORDS
        or _CHINESE_QUALIFIER.search(plain_text)
    ):
        return None
    scale = 1
    while words and words[0].lower() in SCALES:
        scale *= SCALES[words.pop(0).lower()]
    if any(word.lower() in QUALIFIERS or word.lower() in SCALES for word in words) or len(words) > _MAX_WORDS:
        return None
    return UnitWords(scale, _unit(words, "/" in text) if words else None)


def _unit(words: list[str], quotient: bool) -> Unit:
    """Returns the unit that the words name. A quotient of units has no known dimension."""
    names = [_name(word) for word in words if word.lower() not in FILLERS or len(words) == 1]
    power = 1
    for name in _POWERS.keys() & set(names):
        if len(names) > 1:
            names.remove(name)
            power = _POWERS[name]
    names = [name for name in names if name not in _UNINFORMATIVE_NOUNS]
    if len(names) == 1 and not quotient:
        for dimension, factors in MEASURES.items():
            if names[0] in factors:
                return Unit(f"{dimension}^{power}", Fraction(factors[names[0]]) ** power, names[0])
    return Unit("", Fraction(1), " ".join(names))


def _name(word: str) -> str:
    """Returns the unit's name in its usual spelling, or the word's singular if it is no known unit."""
    for spelling in (word, word.lower()):
        singular = spelling[:-1] if len(spelling) > 2 and spelling.endswith("s") else spelling
        for name in (spelling, singular):
            if name in SPELLINGS:
                return SPELLINGS[name]
            if any(name in factors for factors in MEASURES.values()):
                return name
    return singular


def conversion_factor(unit: Unit | None, other: Unit | None) -> Fraction | None:
    """Returns the factor that converts a number in the first unit to the second; None if they measure different things.

    A number without a unit counts as one in any unit, so its factor is 1.
    """
    if unit is None or other is None or unit.is_empty() or other.is_empty():
        return Fraction(1)
    if not (unit.dimension and other.dimension):
        return Fraction(1) if set(unit.label.split()) & set(other.label.split()) else None
    return unit.factor / other.factor if unit.dimension == other.dimension else None
