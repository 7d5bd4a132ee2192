r"""A number or formula with the words beside it: a currency before it, a unit or a percent sign behind it."""

from __future__ import annotations

import re
from fractions import Fraction

from tempo_megatron.grading.formulas import is_formula
from tempo_megatron.grading.marks import written
from tempo_megatron.grading.units import Words, read_words, same_amount, scales_apart
from tempo_megatron.grading.values import Quantity
from tempo_megatron.grading.vocabulary import SCALES

_SYMBOLS = {r"\%": "percent", r"\$": "dollars", r"\degree": "degrees", "%": "percent"}
_SAID_BEFORE = re.compile(r"\\text\{ *(minus|negative|exactly|precisely|simply|equal to) *\} *")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_MOST_EXACT_DIGITS = 5
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d{1,30})\}\{(-?\d{1,30})\}|(-?)(\d{1,30}) */ *(\d{1,30})")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|operatorname)(?![a-z])")
_DEGREE = re.compile(r"\^ *\{ *(?:\\circ|\\degree|o|\\text\{o\}) *\}|\\degree")
_TEMPERATURE = re.compile(r"\\degree *(?:\\text\{ *)?([CF])(?: *\})?$")
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}
_UNIT_POWER = re.compile(r"\\text\{([^{}]*)\} *\^ *\{? *([23]) *\}?")
_UNIT_QUOTIENT = re.compile(r"\\text\{([^{}]*)\} */ *(?:\\text\{([^{}]*)\}|([a-z])(?![a-z]))")
_WRITTEN_UNIT = re.compile(r"(?<=\d) *(m|g|s|h|L|l)(?: *\^ *\{ *([23]) *\})?$")


def quantity(marks: list[str]) -> Quantity | None:
    """The marks as a formula with words; None where a rule explains neither."""
    latex = _UNIT_QUOTIENT.sub(r"\\text{\1/\2\3}", _UNIT_POWER.sub(r"\\text{\1^\2}", written(marks)))
    latex = _DEGREE.sub(r"\\degree ", latex)
    latex = _TEMPERATURE.sub(lambda match: rf"\text{{{_TEMPERATURES[match.group(1)]}}}", latex)
    said = _SAID_BEFORE.match(latex)
    if said:
        latex = ("-" if said.group(1) in ("minus", "negative") else "") + latex[said.end() :]
    formula, words = _words_apart(latex)
    meaning = read_words(words) if words else Words(1, None)
    if meaning is None:
        return None
    if r"\text" in formula:
        return _compound(f"{formula}\\text{{{words}}}") if words else None
    if not formula or not is_formula(formula):
        return None
    if meaning.scale != 1:
        formula = _scaled(formula, meaning.scale)
    unit = " ".join(word for word in scales_apart(words).split() if word.lower() not in SCALES)
    return Quantity(canonical(formula), unit if meaning.unit else "")


def canonical(formula: str) -> str:
    """A number or a fraction of whole numbers in its one form; any other formula without blanks that say nothing."""
    formula = re.sub(r"(?<![a-zA-Z]) +| +(?![a-zA-Z])", "", formula).removeprefix("+")
    if _NUMBER.fullmatch(formula):
        number = formula.rstrip("0").rstrip(".") if "." in formula else formula
        if "." in number and len(formula.lstrip("-0.")) > _MOST_EXACT_DIGITS:
            return formula  # zeros at the end of a rounded value are digits of it
        return "0" if number in ("-0", "-", "") else number
    match = _FRACTION.fullmatch(formula)
    if not match:
        return formula
    sign, over, under, slash_sign, slash_over, slash_under = match.groups()
    over, under = over or slash_over, under or slash_under
    if not int(under):
        return formula
    value = Fraction(int(over), int(under)) * (-1 if sign or slash_sign else 1)
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{'-' * (value < 0)}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _scaled(formula: str, scale: int) -> str:
    if not _NUMBER.fullmatch(formula):
        return rf"({formula})\cdot {scale}"
    value = Fraction(formula) * scale
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _words_apart(latex: str) -> tuple[str, str]:
    """The formula, and the words before and behind it."""
    words: list[str] = []
    sign = ""
    if latex.startswith(("-\\$", "-\\text{")):
        sign, latex = "-", latex[1:]
    if latex.startswith(r"\$"):
        words, latex = ["dollars"], latex[2:].lstrip()
    elif re.match(r"\\text\{ *[€£¥₹$] *\}", latex):
        currency, _, latex = latex.removeprefix(r"\text{").partition("}")
        words = [currency.strip()]
    trigonometric = _TRIGONOMETRY.search(latex)
    while True:
        latex = latex.strip()
        symbol = next((symbol for symbol in _SYMBOLS if latex.endswith(symbol)), "")
        if symbol == r"\degree" and trigonometric:
            break
        if symbol:
            words.append(_SYMBOLS[symbol])
            latex = latex[: -len(symbol)]
        elif latex.endswith("}") and (start := latex.rfind(r"\text{")) >= 0 and "}" not in latex[start:-1]:
            words.insert(0, latex[start + len(r"\text{") : -1])
            latex = latex[:start]
        elif not words and (unit := _WRITTEN_UNIT.search(latex)) and " " in latex[unit.start() : unit.end()]:
            words.append(unit.group(1) + (f"^{unit.group(2)}" if unit.group(2) else ""))
            latex = latex[: unit.start()]
        else:
            break
    return sign + latex, " ".join(words)


def _compound(latex: str) -> Quantity | None:
    """5 hours 30 minutes, in the last unit; None where the units do not measure the same."""
    parts = re.findall(r" *(\d+(?:\.\d+)?) *\\text\{([^{}]*)\},?", latex)
    if len(parts) < 2 or "".join(f"{number}{words}" for number, words in parts) != re.sub(
        r" *\\text\{([^{}]*)\},?| ", r"\1", latex
    ):
        return None
    last = read_words(parts[-1][1])
    total = Fraction(0)
    for number, text in parts:
        words = read_words(text)
        if not words or not last or not words.unit or not words.unit.dimension or words.scale != 1:
            return None
        factor = same_amount(words.unit, last.unit)
        if factor is None:
            return None
        total += Fraction(number) * factor
    return Quantity(canonical(rf"\frac{{{total.numerator}}}{{{total.denominator}}}"), parts[-1][1].strip())
