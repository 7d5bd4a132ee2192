r"""What the words beside a number say: a unit, a number to multiply by, or something that changes the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from tempo_megatron.grading.vocabulary import FILLERS, MEASURES, QUALIFIERS, SCALES, SPELLINGS

_NEUTRAL = frozenset(["unit", "number", "value"])
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[€£¥₹¢$°%]")  # noqa: RUF001
_POWER = re.compile(r"\^ ?([23])")
_MARKUP = re.compile(r"\\text|\\(?=[$%])|[{}]")
_HALF_OF_DAY = re.compile(r"\b([ap])\.m\b\.?")
_HARMLESS = re.compile(r"[\s./()\[\]'’-]")  # noqa: RUF001
_POWERS = {"powerpower": 2, "powerpowerpower": 3, "square": 2, "sq": 2, "cubic": 3, "cu": 3}
_MOST_WORDS = 4
_CHINESE_SCALE = re.compile(r"[万萬亿億]|千(?![米克瓦卡])|百(?!分)")
_CHINESE_QUALIFIER = re.compile(
    r"以上|以下|以内|左右|上下|至少|至多|最多|最少|大约|大于|小于|超过|不是|不等|不足|不到|不止|错|或|(?:^|\s)[约多余]"
)


@dataclass(frozen=True)
class Unit:
    """A measure with its factor to the dimension's base unit, or a noun that is counted."""

    dimension: str
    factor: Fraction
    label: str

    def names_nothing(self) -> bool:
        return not self.dimension and not self.label


@dataclass(frozen=True)
class Words:
    """What the words beside a number amount to: a number to multiply by, and a unit."""

    scale: int
    unit: Unit | None


def scales_apart(words: str) -> str:
    """The words with a blank behind each Chinese numeral that multiplies: Chinese writes none."""
    return _CHINESE_SCALE.sub(r"\g<0> ", words)


def read_words(text: str) -> Words | None:
    r"""The words' meaning; None where they say more than a unit: a denial, a hedge, a comparison, a fraction."""
    bare = _POWER.sub(lambda match: f" {'power' * int(match.group(1))} ", _MARKUP.sub("", text))
    bare = scales_apart(_HALF_OF_DAY.sub(r"\1m", bare))
    words = _WORD.findall(bare)
    if _HARMLESS.sub("", _WORD.sub("", bare)) or len(words) > 2 * _MOST_WORDS or _CHINESE_QUALIFIER.search(bare):
        return None
    scale = 1
    while words and words[0].lower() in SCALES:
        scale *= SCALES[words.pop(0).lower()]
    if any(word.lower() in QUALIFIERS or word.lower() in SCALES for word in words) or len(words) > _MOST_WORDS:
        return None
    return Words(scale, _unit(words, "/" in text) if words else None)


def _unit(words: list[str], quotient: bool) -> Unit:
    names = [_name(word) for word in words if word.lower() not in FILLERS or len(words) == 1]
    power = 1
    for name in _POWERS.keys() & set(names):
        if len(names) > 1:
            names.remove(name)
            power = _POWERS[name]
    names = [name for name in names if name not in _NEUTRAL]
    if len(names) == 1 and not quotient:
        for dimension, factors in MEASURES.items():
            if names[0] in factors:
                return Unit(f"{dimension}^{power}", Fraction(factors[names[0]]) ** power, names[0])
    return Unit("", Fraction(1), " ".join(names))


def _name(word: str) -> str:
    for spelling in (word, word.lower()):
        singular = spelling[:-1] if len(spelling) > 2 and spelling.endswith("s") else spelling
        for name in (spelling, singular):
            if name in SPELLINGS:
                return SPELLINGS[name]
            if any(name in factors for factors in MEASURES.values()):
                return name
    return singular


def same_amount(unit: Unit | None, other: Unit | None) -> Fraction | None:
    """What a number in the first unit is multiplied by to be one in the second. A number without a unit is one in any.

    None where they measure different things.
    """
    if unit is None or other is None or unit.names_nothing() or other.names_nothing():
        return Fraction(1)
    if not (unit.dimension and other.dimension):
        return Fraction(1) if set(unit.label.split()) & set(other.label.split()) else None
    return unit.factor / other.factor if unit.dimension == other.dimension else None
