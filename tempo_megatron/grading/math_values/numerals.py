"""Parses numbers as people write them: thousands, powers of ten, repeating decimals, bases, ratios and times."""

from __future__ import annotations

import re

from tempo_megatron.grading.math_values.units import parse_unit_words
from tempo_megatron.grading.math_values.values import BasedDigits, Quantity, ValueSequence
from tempo_megatron.grading.math_values.vocabulary import BASES

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:['’]\d{3}|(?: \d{3}))+(?![\d,])")  # noqa: RUF001
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\w.])")
_TIMES = re.compile(r"(?<=\d) *[xX] *(?=10 ?\^)")
_MIXED = re.compile(r"(?<![\d./])(\d+) +(\d+) ?/ ?(\d+)(?![\d./])")
_BLANK_BEFORE_FRACTION = re.compile(r"(?<=\d) +(?=\\frac)")
_OVERLINED = re.compile(r"(\d*)\.(\d*)\\(?:overline|dot) *\{?(\d+)\}?")
_UNFINISHED_DECIMAL = re.compile(r"(\d*)\.(\d{3,})(?:\.\.\.|\\ldots)")
_BARE_DECIMAL = re.compile(r"(?<![\d.])\.(?=\d)")
_TRAILING_POINT = re.compile(r"(?<=\d)\.(?![\d.])")
_LEADING_ZEROS = re.compile(r"(?<![\w.])0+(?=\d)")
_BASED = re.compile(r"(?:\((?=[^)]*\)_))?([0-9A-F]+)\)?_ *\{(?:\\text\{ *)?(\w+) *\}?\}")
_RATIO = re.compile(r"(\d+(?: *: *\d+)+) *(?:\\text\{ *([^{}]*?) *\})?")
_TO = re.compile(r"(?<=\d) *\\text\{ *to *\} *(?=\d)")
_MAX_PERIOD_DIGITS = 60


def normalize_numerals(latex: str) -> str:
    """Returns the formula with each number in digits, with a decimal point, or as a fraction."""
    latex = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match.group()), latex)
    latex = _SPACED_THOUSANDS.sub(lambda match: re.sub(r"\D", "", match.group()), latex)
    latex = _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", _TIMES.sub(r"\\cdot ", latex))
    latex = _OVERLINED.sub(lambda match: _repeating_decimal(*match.groups()), latex)
    latex = _UNFINISHED_DECIMAL.sub(_continued_decimal, latex)
    latex = _BLANK_BEFORE_FRACTION.sub("", _MIXED.sub(r"\1\\frac{\2}{\3}", latex))
    return _LEADING_ZEROS.sub("", _TRAILING_POINT.sub("", _BARE_DECIMAL.sub("0.", latex)))


def _repeating_decimal(integer_part: str, before: str, period: str) -> str:
    r"""Returns a repeating decimal as a fraction: 0.1\overline{6} is (16 - 1) / 90."""
    if len(before + period) > _MAX_PERIOD_DIGITS:
        return f"{integer_part}.{before}{period}"
    numerator = int(f"{integer_part or 0}{before}{period}") - int(f"{integer_part or 0}{before}")
    return rf"\frac{{{numerator}}}{{{'9' * len(period)}{'0' * len(before)}}}"


def _continued_decimal(match: re.Match[str]) -> str:
    """Returns a decimal with three dots: as repeating if its end is a period, else unchanged.

    The period is one digit written three times, or up to six digits written twice.
    """
    integer_part, digits = match.groups()
    for period in range(1, 7):
        tail = digits[-period:]
        before = digits[: -2 * period] if period > 1 else digits[:-3]
        if len(digits) > 2 * period - (period == 1) and digits.endswith(tail * (3 if period == 1 else 2)):
            while before.endswith(tail):
                before = before[:-period]
            return _repeating_decimal(integer_part, before, tail)
    return match.group()


def parse_based_digits(latex: str) -> BasedDigits | None:
    """Returns the value of digits with their base as a subscript; None for any other text."""
    match = _BASED.fullmatch(latex)
    base = match and (BASES.get(match.group(2)) or (int(match.group(2)) if match.group(2).isdecimal() else 0))
    if not match or not base or (not match.group(1)[0].isdecimal() and base < 11):
        return None
    return BasedDigits(match.group(1).lstrip("0") or "0", base)


def parse_ratio(latex: str) -> ValueSequence | None:
    """Returns the value of a ratio or a time of day, with AM or PM; None for any other text."""
    match = _RATIO.fullmatch(_TO.sub(":", latex))
    if not match:
        return None
    words = parse_unit_words(match.group(2) or "")
    if not words or words.scale != 1:
        return None
    items = tuple(Quantity(str(int(number))) for number in re.findall(r"\d+", match.group(1)))
    return ValueSequence(":", words.unit.label if words.unit else "", items)
