r"""Parses a number or formula with its words: a currency before it, a unit or a percent sign after it."""

from __future__ import annotations

import re
from fractions import Fraction

from tempo_megatron.grading.math_values.latex_tokens import join_tokens
from tempo_megatron.grading.math_values.sympy_formulas import is_readable_formula
from tempo_megatron.grading.math_values.units import (
    UnitWords,
    conversion_factor,
    parse_unit_words,
    separate_chinese_scales,
)
from tempo_megatron.grading.math_values.values import Quantity
from tempo_megatron.grading.math_values.vocabulary import SCALES

_SYMBOLS = {r"\%": "percent", r"\$": "dollars", r"\degree": "degrees", "%": "percent"}
_LEADING_WORD = re.compile(r"\\text\{ *(minus|negative|exactly|precisely|simply|equal to) *\} *")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_MAX_EXACT_DIGITS = 5
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d{1,30})\}\{(-?\d{1,30})\}|(-?)(\d{1,30}) */ *(\d{1,30})")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|operatorname)(?![a-z])")
_DEGREE = re.compile(r"\^ *\{ *(?:\\circ|\\degree|o|\\text\{o\}) *\}|\\degree")
_TEMPERATURE = re.compile(r"\\degree *(?:\\text\{ *)?([CF])(?: *\})?$")
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}
_UNIT_POWER = re.compile(r"\\text\{([^{}]*)\} *\^ *\{? *([23]) *\}?")
_UNIT_QUOTIENT = re.compile(r"\\text\{([^{}]*)\} */ *(?:\\text\{([^{}]*)\}|([a-z])(?![a-z]))")
_ABBREVIATED_UNIT = re.compile(r"(?<=\d) *(m|g|s|h|L|l)(?: *\^ *\{ *([23]) *\})?$")


def parse_quantity(tokens: list[str]) -> Quantity | None:
    """Returns the tokens as a formula with words; None if the formula or the words cannot be read."""
    latex = _UNIT_QUOTIENT.sub(r"\\text{\1/\2\3}", _UNIT_POWER.sub(r"\\text{\1^\2}", join_tokens(tokens)))
    latex = _DEGREE.sub(r"\\degree ", latex)
    latex = _TEMPERATURE.sub(lambda match: rf"\text{{{_TEMPERATURES[match.group(1)]}}}", latex)
    leading_word = _LEADING_WORD.match(latex)
    if leading_word:
        sign = "-" if leading_word.group(1) in ("minus", "negative") else ""
        latex = sign + latex[leading_word.end() :]
    formula, words = _split_formula_and_words(latex)
    unit_words = parse_unit_words(words) if words else UnitWords(1, None)
    if unit_words is None:
        return None
    if r"\text" in formula:
        return _parse_compound_quantity(f"{formula}\\text{{{words}}}") if words else None
    if not formula or not is_readable_formula(formula):
        return None
    if unit_words.scale != 1:
        formula = _scaled(formula, unit_words.scale)
    unit = " ".join(word for word in separate_chinese_scales(words).split() if word.lower() not in SCALES)
    return Quantity(canonical_formula(formula), unit if unit_words.unit else "")


def canonical_formula(formula: str) -> str:
    """Returns a number or a fraction of integers in its canonical form, any other formula without needless blanks."""
    formula = re.sub(r"(?<![a-zA-Z]) +| +(?![a-zA-Z])", "", formula).removeprefix("+")
    if _NUMBER.fullmatch(formula):
        number = formula.rstrip("0").rstrip(".") if "." in formula else formula
        if "." in number and len(formula.lstrip("-0.")) > _MAX_EXACT_DIGITS:
            return formula  # the final zeros of a rounded value are significant
        return "0" if number in ("-0", "-", "") else number
    match = _FRACTION.fullmatch(formula)
    if not match:
        return formula
    sign, numerator, denominator, slash_sign, slash_numerator, slash_denominator = match.groups()
    numerator, denominator = numerator or slash_numerator, denominator or slash_denominator
    if not int(denominator):
        return formula
    value = Fraction(int(numerator), int(denominator)) * (-1 if sign or slash_sign else 1)
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{'-' * (value < 0)}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _scaled(formula: str, scale: int) -> str:
    if not _NUMBER.fullmatch(formula):
        return rf"({formula})\cdot {scale}"
    value = Fraction(formula) * scale
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _split_formula_and_words(latex: str) -> tuple[str, str]:
    """Returns the formula, and the words before and after it."""
    words: list[str] = []
    sign = ""
    if latex.startswith(("-\\$", "-\\text{")):
        sign, latex = "-", latex[1:]
    if latex.startswith(r"\$"):
        words, latex = ["dollars"], latex[2:].lstrip()
    elif re.match(r"\\text\{ *[€£¥₹$] *\}", latex):
        currency, _, latex = latex.removeprefix(r"\text{").partition("}")
        words = [currency.strip()]
    has_trigonometry = _TRIGONOMETRY.search(latex)
    while True:
        latex = latex.strip()
        symbol = next((symbol for symbol in _SYMBOLS if latex.endswith(symbol)), "")
        if symbol == r"\degree" and has_trigonometry:
            break
        if symbol:
            words.append(_SYMBOLS[symbol])
            latex = latex[: -len(symbol)]
        elif latex.endswith("}") and (start := latex.rfind(r"\text{")) >= 0 and "}" not in latex[start:-1]:
            words.insert(0, latex[start + len(r"\text{") : -1])
            latex = latex[:start]
        elif not words and (unit := _ABBREVIATED_UNIT.search(latex)) and " " in latex[unit.start() : unit.end()]:
            words.append(unit.group(1) + (f"^{unit.group(2)}" if unit.group(2) else ""))
            latex = latex[: unit.start()]
        else:
            break
    return sign + latex, " ".join(words)


def _parse_compound_quantity(latex: str) -> Quantity | None:
    """Returns a sum such as 5 hours 30 minutes in its last unit; None if the units have different dimensions."""
    parts = re.findall(r" *(\d+(?:\.\d+)?) *\\text\{([^{}]*)\},?", latex)
    if len(parts) < 2 or "".join(f"{number}{words}" for number, words in parts) != re.sub(
        r" *\\text\{([^{}]*)\},?| ", r"\1", latex
    ):
        return None
    last = parse_unit_words(parts[-1][1])
    total = Fraction(0)
    for number, text in parts:
        words = parse_unit_words(text)
        if not words or not last or not words.unit or not words.unit.dimension or words.scale != 1:
            return None
        factor = conversion_factor(words.unit, last.unit)
        if factor is None:
            return None
        total += Fraction(number) * factor
    return Quantity(canonical_formula(rf"\frac{{{total.numerator}}}{{{total.denominator}}}"), parts[-1][1].strip())
