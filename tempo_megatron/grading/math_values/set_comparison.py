"""Compares sets of real numbers: intervals, inequalities in one letter, unions and complements."""

from __future__ import annotations

from sympy import EmptySet, Expr, FiniteSet, Interval, S, Set, Symbol, oo
from sympy.core.relational import Ge, Gt, Le, Lt
from sympy.solvers.inequalities import solve_univariate_inequality

from tempo_megatron.grading.math_values.formula_comparison import evaluate_formula
from tempo_megatron.grading.math_values.values import (
    NamedValue,
    Quantity,
    Relation,
    SetOperation,
    UnparsedText,
    Value,
    ValueSequence,
)

_INEQUALITIES = {"<": Lt, ">": Gt, r"\le ": Le, r"\ge ": Ge}


def same_set(gold: Value, response: Value) -> bool:
    """Returns whether both values are the same set of real numbers. Raises ValueError if one is no such set."""
    sets = _as_set(gold), _as_set(response)
    return bool(sets[0] == sets[1] or (sets[0] - sets[1]) + (sets[1] - sets[0]) == S.EmptySet)


def _as_set(value: Value) -> Set:
    """Returns the set that a value stands for. Raises ValueError if it stands for none."""
    if isinstance(value, NamedValue):
        return _as_set(value.value)
    if isinstance(value, UnparsedText) and value.text in (r"\mathbb{R}", r"\emptyset"):
        return S.Reals if value.text == r"\mathbb{R}" else EmptySet
    if isinstance(value, ValueSequence) and value.opening == r"\{":
        return FiniteSet(*(_number(item) for item in value.items))
    if isinstance(value, ValueSequence) and len(value.items) == 2 and value.opening in ("(", "["):
        start, end = map(_number, value.items)
        return Interval(start, end, value.opening == "(", value.closing == ")")
    if isinstance(value, SetOperation):
        combined = _as_set(value.operands[0])
        for sign, operand in zip(value.signs, value.operands[1:], strict=True):
            combined = _combined(combined, sign, _as_set(operand))
        return combined
    if isinstance(value, Relation):
        return _solutions(value)
    raise ValueError(f"{value} is no set of numbers")


def _combined(left: Set, sign: str, right: Set) -> Set:
    if sign == r"\cup":
        return left.union(right)
    return left.intersect(right) if sign == r"\cap" else left - right


def _number(value: Value) -> Expr:
    if not isinstance(value, Quantity) or value.words:
        raise ValueError(f"{value} is no number")
    return evaluate_formula(value.latex)


def _solutions(relation: Relation) -> Set:
    """Returns the real numbers for which a relation in one letter holds."""
    sides = [evaluate_formula(side) for side in relation.sides]
    letters = set().union(*(side.free_symbols for side in sides))
    if len(letters) != 1:
        raise ValueError(f"{relation} is not in one letter")
    (letter,) = letters
    solutions = S.Reals
    for sign, left, right in zip(relation.signs, sides, sides[1:], strict=False):
        solutions = solutions.intersect(_solution(sign, left, right, letter))
    return solutions


def _solution(sign: str, left: Expr, right: Expr, letter: Symbol) -> Set:
    if right == letter and left.is_number:
        left, right = right, left
        sign = {"<": ">", ">": "<", r"\le ": r"\ge ", r"\ge ": r"\le "}.get(sign, sign)
    if left == letter and right.is_number:
        half_lines = {
            "<": lambda: Interval.open(-oo, right),
            r"\le ": lambda: Interval(-oo, right),
            ">": lambda: Interval.open(right, oo),
            r"\ge ": lambda: Interval(right, oo),
            r"\ne ": lambda: S.Reals - FiniteSet(right),
        }
        if sign in half_lines:
            return half_lines[sign]()
    if sign not in _INEQUALITIES:
        raise ValueError("an equation is not compared as a set of numbers")
    return solve_univariate_inequality(_INEQUALITIES[sign](left, right), letter, relational=False)
