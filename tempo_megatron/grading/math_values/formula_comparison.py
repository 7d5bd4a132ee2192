"""Compares numbers and formulas with letters, exactly and at any size.

A decimal is the number as written. If the other value is no decimal, the decimal may be its rounding to six digits or
more. Formulas with letters are equal if they agree at fixed points, which an honest answer does not aim at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from sympy import (
    Basic,
    Expr,
    I,
    Integer,
    MatrixBase,
    Pow,
    Rational,
    S,
    Symbol,
    factorial,
    log,
    nan,
    postorder_traversal,
    zoo,
)

from tempo_megatron.grading.math_values.sympy_formulas import parse_formula
from tempo_megatron.grading.math_values.values import Relation

_LITERAL = re.compile(r"-?(\d+)(?:\.(\d+))?")
_DIVISORS = re.compile(r"\\gcd|\{lcm\}")
_LETTER = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])")
_MIN_ROUNDED_DIGITS = 6
_DOUBLE_DIGITS = 17
_RELATIVE_TOLERANCE = Rational(1, 10**120)
_MAX_DIGITS = 200
_MIN_POINTS = 3
_SMALL_INTEGER_BOUND = 50
"""Exponents of literal numbers and arguments of factorials below it are never too large."""

_MAX_BITS = 10**7
_MAX_FACTORIAL = 10**5
_MIRRORED_SIGNS = {"<": ">", ">": "<", r"\le ": r"\ge ", r"\ge ": r"\le "}


@lru_cache(maxsize=512)
def evaluate_formula(latex: str) -> Basic | MatrixBase:
    """Returns the formula's evaluated expression. Raises ValueError if it cannot be parsed or has no value."""
    formula = parse_formula(latex)
    if _DIVISORS.search(latex) and _LETTER.search(latex):
        raise ValueError(f"{latex} depends on the values of its letters")  # SymPy takes the gcd of two letters as 1
    if "^" in latex or "!" in latex:
        _check_size(formula)
    value = formula.doit()
    if value.has(nan, zoo):
        raise ValueError(f"{latex} has no value")
    return value


def _check_size(formula: Basic | MatrixBase) -> None:
    """Raises ValueError if a power or a factorial is too large: SymPy would compute all of its digits."""
    for part in postorder_traversal(formula):
        if isinstance(part, Pow) and part.base.is_number and part.exp.is_number:
            is_harmless = (isinstance(part.base, Rational) and _is_small(part.exp)) or part.exp == -1
            if not is_harmless and abs(part.exp.evalf(3)) * (1 + abs(log(abs(part.base) + 1).evalf(3))) > _MAX_BITS:
                raise ValueError(f"{part} is too large")
        elif (
            isinstance(part, factorial)
            and part.args[0].is_number
            and not _is_small(part.args[0])
            and abs(part.args[0].evalf(3)) > _MAX_FACTORIAL
        ):
            raise ValueError(f"{part} is too large")


def _is_small(number: Basic) -> bool:
    return isinstance(number, Rational) and abs(number) < _SMALL_INTEGER_BOUND


def same_number(gold: str, response: str, factor: Rational | Expr = S.One) -> bool:
    """Returns whether the gold is `factor` times the response. Raises ValueError if one of them cannot be parsed."""
    if gold == response and factor == 1:
        return True
    literals = _LITERAL.fullmatch(gold), _LITERAL.fullmatch(response)
    if factor == 1 and literals[0] and literals[1]:
        return _same_decimals(gold, response)
    values = evaluate_formula(gold), evaluate_formula(response)
    if isinstance(values[0], MatrixBase) or isinstance(values[1], MatrixBase):
        return factor == 1 and _same_matrices(*values)
    if same_expression(values[0], values[1] * factor):
        return True
    if literals[0] and not literals[1]:
        return _rounds_to(values[1] * factor, gold)
    if literals[1] and not literals[0] and factor == 1:
        return _rounds_to(values[0], response)
    return False


def _same_decimals(gold: str, response: str) -> bool:
    """Returns whether two literals are equal, or the same double with 17 digits: 0.1 and 0.10000000000000001."""
    if Rational(gold) == Rational(response):
        return True
    digits = [len(literal.replace("-", "").replace(".", "").lstrip("0")) for literal in (gold, response)]
    return ("." in gold or "." in response) and max(digits) == _DOUBLE_DIGITS and float(gold) == float(response)


def _rounds_to(value: Expr, decimal: str) -> bool:
    """Returns whether a decimal of six digits or more is the rounded value."""
    integer_part, _, places = decimal.lstrip("-").partition(".")
    if (
        len((integer_part + places).lstrip("0")) < _MIN_ROUNDED_DIGITS
        or not places
        or value.free_symbols
        or not value.is_real
    ):
        return False
    return bool(abs(value - Rational(decimal)) * 2 <= Rational(1, 10 ** len(places)))


def _same_matrices(gold: Basic | MatrixBase, response: Basic | MatrixBase) -> bool:
    if not isinstance(gold, MatrixBase) or not isinstance(response, MatrixBase) or gold.shape != response.shape:
        return False
    return all(map(same_expression, gold.flat(), response.flat()))


def same_expression(gold: Expr, response: Expr) -> bool:
    """Returns whether two evaluated expressions are equal wherever both are real.

    If either contains i, complex values are compared too.
    """
    if gold == response:
        return True
    if (gold.is_Rational and response.is_Rational) or gold.is_infinite or response.is_infinite:
        return False
    letters = sorted(gold.free_symbols | response.free_symbols, key=str)
    if not letters:
        return _vanishes(gold - response, gold)
    agreeing_points = 0
    is_complex = gold.has(I) or response.has(I)
    for point in _points(letters):
        values = [value for side in (gold, response) if (value := _value_at(side, point)) is not None]
        if len(values) < 2 or not all(is_complex or value.is_real for value in values):
            continue
        if not _vanishes(values[0] - values[1], values[0]):
            return False
        agreeing_points += 1
    return agreeing_points >= _MIN_POINTS


def same_equation(gold: Relation, response: Relation) -> bool:
    """Returns whether two equations or inequalities are equivalent.

    They are if the differences of their sides have the same ratio at all points.
    """
    if len(gold.signs) > 1 or len(response.signs) > 1:
        return _same_chain(gold, response)
    sides = [[evaluate_formula(side) for side in relation.sides] for relation in (gold, response)]
    differences = [left - right for left, right in sides]
    letters = sorted(differences[0].free_symbols | differences[1].free_symbols, key=str)
    signs = gold.signs[0], response.signs[0]
    if not letters or signs[1] not in (signs[0], _MIRRORED_SIGNS.get(signs[0])):
        return False
    ratio: Expr | None = None
    agreeing_points = 0
    for point in _points(letters):
        values = [value for difference in differences if (value := _value_at(difference, point)) is not None]
        if len(values) < 2 or not all(value.is_real for value in values):
            continue
        if values[0].is_zero or values[1].is_zero:
            return False
        if ratio is not None and not _vanishes(values[0] - ratio * values[1], values[0]):
            return False
        ratio = values[0] / values[1] if ratio is None else ratio
        agreeing_points += 1
    if ratio is None or agreeing_points < _MIN_POINTS:
        return False
    return signs[0] in ("=", r"\ne ") or bool(ratio > 0) == (signs[0] == signs[1])


def _same_chain(gold: Relation, response: Relation) -> bool:
    """Compares chains such as a < x < b, which may be read from either end."""
    mirrored = Relation(response.sides[::-1], tuple(_MIRRORED_SIGNS.get(sign, sign) for sign in response.signs[::-1]))
    return any(
        gold.signs == chain.signs and all(map(same_number, gold.sides, chain.sides)) for chain in (response, mirrored)
    )


def _vanishes(difference: Expr, scale: Expr) -> bool:
    """Returns whether the difference is zero, relative to `scale`, in all digits that are computed."""
    if difference.is_zero is not None and difference.is_Rational:
        return bool(difference.is_zero)
    value = abs(difference.evalf(2, maxn=_MAX_DIGITS))
    size = abs(scale.evalf(2, maxn=_MAX_DIGITS))
    if not value.is_Float and not value.is_Rational:
        return False
    return bool(value <= size * _RELATIVE_TOLERANCE)


def _points(letters: list[Symbol]) -> Iterator[dict[Symbol, Rational]]:
    """Yields two points of positive fractions, three of positive integers, and two of fractions with both signs."""
    for start in (3, 8):
        yield {
            letter: Rational(29 * index + 7 * start + 2, 10 * start + index + 3) for index, letter in enumerate(letters)
        }
    for start in (3, 5, 6):
        yield {letter: Integer(start + 4 * index) for index, letter in enumerate(reversed(letters))}
    for start in (5, 6):
        yield {
            letter: Rational((-1) ** (index + start) * (17 * index + 3 * start + 2), 6 * start + index + 1)
            for index, letter in enumerate(letters)
        }


def _value_at(value: Expr, point: dict[Symbol, Rational]) -> Expr | None:
    """Returns the value at a point; None if it is not a finite number there."""
    number = value.subs(point)
    if not number.is_number:
        return None
    number = number.doit()
    return None if number.has(nan, zoo) or number.is_infinite else number
