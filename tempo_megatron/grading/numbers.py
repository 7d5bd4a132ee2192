"""Numbers and formulas with letters, compared exactly whatever their size.

A decimal is the number that is written; where the other value is no decimal it may be a rounding to six digits or more.
Formulas with letters are the same when they agree at points that no honest answer was made for.
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

from tempo_megatron.grading.formulas import expression
from tempo_megatron.grading.values import Relation

_LITERAL = re.compile(r"-?(\d+)(?:\.(\d+))?")
_DIVISORS = re.compile(r"\\gcd|\{lcm\}")
_LETTER = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])")
_FEWEST_DIGITS = 6
_DIGITS_OF_A_DOUBLE = 17
_AGREEMENT = Rational(1, 10**120)
_DIGITS = 200
_FEWEST_POINTS = 3
_SMALL = 50  # as an exponent or under a factorial, of numbers that are themselves written out
_MOST_BITS = 10**7
_LARGEST_FACTORIAL = 10**5
_FLIPPED = {"<": ">", ">": "<", r"\le ": r"\ge ", r"\ge ": r"\le "}


@lru_cache(maxsize=512)
def evaluated(latex: str) -> Basic | MatrixBase:
    """The formula's value, worked out. Raises ValueError where it cannot be read or has none."""
    formula = expression(latex)
    if _DIVISORS.search(latex) and _LETTER.search(latex):
        raise ValueError(f"{latex} depends on what its letters are")  # SymPy says that the gcd of two letters is 1
    if "^" in latex or "!" in latex:
        _check_size(formula)
    value = formula.doit()
    if value.has(nan, zoo):
        raise ValueError(f"{latex} has no value")
    return value


def _check_size(formula: Basic | MatrixBase) -> None:
    """Raises ValueError where a power or a factorial would not fit: SymPy would work it out to its last digit."""
    for part in postorder_traversal(formula):
        if isinstance(part, Pow) and part.base.is_number and part.exp.is_number:
            written = (isinstance(part.base, Rational) and _is_small(part.exp)) or part.exp == -1
            if not written and abs(part.exp.evalf(3)) * (1 + abs(log(abs(part.base) + 1).evalf(3))) > _MOST_BITS:
                raise ValueError(f"{part} is too large")
        elif (
            isinstance(part, factorial)
            and part.args[0].is_number
            and not _is_small(part.args[0])
            and abs(part.args[0].evalf(3)) > _LARGEST_FACTORIAL
        ):
            raise ValueError(f"{part} is too large")


def _is_small(number: Basic) -> bool:
    return isinstance(number, Rational) and abs(number) < _SMALL


def same_number(gold: str, response: str, factor: Rational | Expr = S.One) -> bool:
    """Whether the gold's formula is `factor` times the response's. Raises ValueError where one cannot be read."""
    if gold == response and factor == 1:
        return True
    literals = _LITERAL.fullmatch(gold), _LITERAL.fullmatch(response)
    if factor == 1 and literals[0] and literals[1]:
        return _same_decimals(gold, response)
    values = evaluated(gold), evaluated(response)
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
    """Whether two literals are equal, or are the same double with all its digits: 0.1 and 0.10000000000000001."""
    if Rational(gold) == Rational(response):
        return True
    digits = [len(literal.replace("-", "").replace(".", "").lstrip("0")) for literal in (gold, response)]
    return ("." in gold or "." in response) and max(digits) == _DIGITS_OF_A_DOUBLE and float(gold) == float(response)


def _rounds_to(value: Expr, decimal: str) -> bool:
    """Whether a decimal of six digits or more is the value, rounded."""
    whole, _, places = decimal.lstrip("-").partition(".")
    if len((whole + places).lstrip("0")) < _FEWEST_DIGITS or not places or value.free_symbols or not value.is_real:
        return False
    return bool(abs(value - Rational(decimal)) * 2 <= Rational(1, 10 ** len(places)))


def _same_matrices(gold: Basic | MatrixBase, response: Basic | MatrixBase) -> bool:
    if not isinstance(gold, MatrixBase) or not isinstance(response, MatrixBase) or gold.shape != response.shape:
        return False
    return all(map(same_expression, gold.flat(), response.flat()))


def same_expression(gold: Expr, response: Expr) -> bool:
    """Whether two evaluated expressions are equal wherever both are real (or complex, where i is in one of them)."""
    if gold == response:
        return True
    if (gold.is_Rational and response.is_Rational) or gold.is_infinite or response.is_infinite:
        return False
    letters = sorted(gold.free_symbols | response.free_symbols, key=str)
    if not letters:
        return _vanishes(gold - response, gold)
    agreeing = 0
    everywhere = gold.has(I) or response.has(I)
    for point in _points(letters):
        values = [value for side in (gold, response) if (value := _at(side, point)) is not None]
        if len(values) < 2 or not all(everywhere or value.is_real for value in values):
            continue
        if not _vanishes(values[0] - values[1], values[0]):
            return False
        agreeing += 1
    return agreeing >= _FEWEST_POINTS


def same_equation(gold: Relation, response: Relation) -> bool:
    """Whether two equations or inequalities say the same: their differences are in one ratio at all points."""
    if len(gold.signs) > 1 or len(response.signs) > 1:
        return _same_chain(gold, response)
    sides = [[evaluated(side) for side in relation.sides] for relation in (gold, response)]
    differences = [left - right for left, right in sides]
    letters = sorted(differences[0].free_symbols | differences[1].free_symbols, key=str)
    signs = gold.signs[0], response.signs[0]
    if not letters or signs[1] not in (signs[0], _FLIPPED.get(signs[0])):
        return False
    ratio: Expr | None = None
    agreeing = 0
    for point in _points(letters):
        values = [value for difference in differences if (value := _at(difference, point)) is not None]
        if len(values) < 2 or not all(value.is_real for value in values):
            continue
        if values[0].is_zero or values[1].is_zero:
            return False
        if ratio is not None and not _vanishes(values[0] - ratio * values[1], values[0]):
            return False
        ratio = values[0] / values[1] if ratio is None else ratio
        agreeing += 1
    if ratio is None or agreeing < _FEWEST_POINTS:
        return False
    return signs[0] in ("=", r"\ne ") or bool(ratio > 0) == (signs[0] == signs[1])


def _same_chain(gold: Relation, response: Relation) -> bool:
    """a < x < b, from either end."""
    turned = Relation(response.sides[::-1], tuple(_FLIPPED.get(sign, sign) for sign in response.signs[::-1]))
    return any(
        gold.signs == chain.signs and all(map(same_number, gold.sides, chain.sides)) for chain in (response, turned)
    )


def _vanishes(difference: Expr, scale: Expr) -> bool:
    """Whether the difference is zero in all digits that are computed, by the scale of what was subtracted."""
    if difference.is_zero is not None and difference.is_Rational:
        return bool(difference.is_zero)
    value = abs(difference.evalf(2, maxn=_DIGITS))
    size = abs(scale.evalf(2, maxn=_DIGITS))
    if not value.is_Float and not value.is_Rational:
        return False
    return bool(value <= size * _AGREEMENT)


def _points(letters: list[Symbol]) -> Iterator[dict[Symbol, Rational]]:
    """Points with positive fractions, with positive whole numbers, and with both signs."""
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


def _at(value: Expr, point: dict[Symbol, Rational]) -> Expr | None:
    number = value.subs(point)
    if not number.is_number:
        return None
    number = number.doit()
    return None if number.has(nan, zoo) or number.is_infinite else number
