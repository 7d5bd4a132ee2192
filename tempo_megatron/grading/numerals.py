"""Numbers as people write them: groups of thousands, powers of ten, repeating decimals, bases, ratios and times."""

from __future__ import annotations

import re

from tempo_megatron.grading.units import read_words
from tempo_megatron.grading.values import Based, Quantity, Sequence
from tempo_megatron.grading.vocabulary import BASES

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:['’]\d{3}|(?: \d{3}))+(?![\d,])")  # noqa: RUF001
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\w.])")
_TIMES = re.compile(r"(?<=\d) *[xX] *(?=10 ?\^)")
_MIXED = re.compile(r"(?<![\d./])(\d+) +(\d+) ?/ ?(\d+)(?![\d./])")
_FRACTION_BEHIND = re.compile(r"(?<=\d) +(?=\\frac)")
_OVERLINED = re.compile(r"(\d*)\.(\d*)\\(?:overline|dot) *\{?(\d+)\}?")
_CONTINUED = re.compile(r"(\d*)\.(\d{3,})(?:\.\.\.|\\ldots)")
_BARE_DECIMAL = re.compile(r"(?<![\d.])\.(?=\d)")
_EMPTY_DECIMAL = re.compile(r"(?<=\d)\.(?![\d.])")
_LEADING_ZEROS = re.compile(r"(?<![\w.])0+(?=\d)")
_BASED = re.compile(r"(?:\((?=[^)]*\)_))?([0-9A-F]+)\)?_ *\{(?:\\text\{ *)?(\w+) *\}?\}")
_RATIO = re.compile(r"(\d+(?: *: *\d+)+) *(?:\\text\{ *([^{}]*?) *\})?")
_TO = re.compile(r"(?<=\d) *\\text\{ *to *\} *(?=\d)")
_LONGEST_PERIOD = 60


def numerals(latex: str) -> str:
    """The formula with each number in digits, a decimal point or a fraction."""
    latex = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match.group()), latex)
    latex = _SPACED_THOUSANDS.sub(lambda match: re.sub(r"\D", "", match.group()), latex)
    latex = _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", _TIMES.sub(r"\\cdot ", latex))
    latex = _OVERLINED.sub(lambda match: _repeating(*match.groups()), latex)
    latex = _CONTINUED.sub(_continued, latex)
    latex = _FRACTION_BEHIND.sub("", _MIXED.sub(r"\1\\frac{\2}{\3}", latex))
    return _LEADING_ZEROS.sub("", _EMPTY_DECIMAL.sub("", _BARE_DECIMAL.sub("0.", latex)))


def _repeating(whole: str, before: str, period: str) -> str:
    r"""0.1\overline{6} as a fraction: (16 - 1) / 90."""
    if len(before + period) > _LONGEST_PERIOD:
        return f"{whole}.{before}{period}"
    over = int(f"{whole or 0}{before}{period}") - int(f"{whole or 0}{before}")
    return rf"\frac{{{over}}}{{{'9' * len(period)}{'0' * len(before)}}}"


def _continued(match: re.Match[str]) -> str:
    """A decimal that goes on: repeating where its end has been written three times."""
    whole, digits = match.groups()
    for period in range(1, 7):
        tail = digits[-period:]
        before = digits[: -2 * period] if period > 1 else digits[:-3]
        if len(digits) > 2 * period - (period == 1) and digits.endswith(tail * (3 if period == 1 else 2)):
            while before.endswith(tail):
                before = before[:-period]
            return _repeating(whole, before, tail)
    return match.group()


def based(latex: str) -> Based | None:
    """Digits with their base as a subscript."""
    match = _BASED.fullmatch(latex)
    base = match and (BASES.get(match.group(2)) or (int(match.group(2)) if match.group(2).isdecimal() else 0))
    if not match or not base or (not match.group(1)[0].isdecimal() and base < 11):
        return None
    return Based(match.group(1).lstrip("0") or "0", base)


def ratio(latex: str) -> Sequence | None:
    """A ratio, or a time of day with its half of the day."""
    match = _RATIO.fullmatch(_TO.sub(":", latex))
    if not match:
        return None
    meaning = read_words(match.group(2) or "")
    if not meaning or meaning.scale != 1:
        return None
    items = tuple(Quantity(str(int(number))) for number in re.findall(r"\d+", match.group(1)))
    return Sequence(":", meaning.unit.label if meaning.unit else "", items)
