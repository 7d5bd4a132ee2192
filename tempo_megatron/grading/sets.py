"""Sets of real numbers: intervals, inequalities in one letter, unions and complements."""

from __future__ import annotations

from sympy import EmptySet, Expr, FiniteSet, Interval, S, Set, Symbol, oo
from sympy.core.relational import Ge, Gt, Le, Lt
from sympy.solvers.inequalities import solve_univariate_inequality

from tempo_megatron.grading.numbers import evaluated
from tempo_megatron.grading.values import Combination, Named, Opaque, Quantity, Relation, Sequence, Value

_INEQUALITIES = {"<": Lt, ">": Gt, r"\le ": Le, r"\ge ": Ge}


def same_set(gold: Value, response: Value) -> bool:
    """Whether both values are sets of real numbers, and the same one. Raises ValueError where one is none."""
    sets = _as_set(gold), _as_set(response)
    return bool(sets[0] == sets[1] or (sets[0] - sets[1]) + (sets[1] - sets[0]) == S.EmptySet)


def _as_set(value: Value) -> Set:
    if isinstance(value, Named):
        return _as_set(value.value)
    if isinstance(value, Opaque) and value.text in (r"\mathbb{R}", r"\emptyset"):
        return S.Reals if value.text == r"\mathbb{R}" else EmptySet
    if isinstance(value, Sequence) and value.opening == r"\{":
        return FiniteSet(*(_number(item) for item in value.items))
    if isinstance(value, Sequence) and len(value.items) == 2 and value.opening in ("(", "["):
        start, end = map(_number, value.items)
        return Interval(start, end, value.opening == "(", value.closing == ")")
    if isinstance(value, Combination):
        result = _as_set(value.operands[0])
        for sign, operand in zip(value.signs, value.operands[1:], strict=True):
            other = _as_set(operand)
            result = {r"\cup": result.union, r"\cap": result.intersect}.get(
                sign, lambda rest, whole=result: whole - rest
            )(other)
        return result
    if isinstance(value, Relation):
        return _solutions(value)
    raise ValueError(f"{value} is no set of numbers")


def _number(value: Value) -> Expr:
    if not isinstance(value, Quantity) or value.words:
        raise ValueError(f"{value} is no number")
    return evaluated(value.latex)


def _solutions(relation: Relation) -> Set:
    """The real numbers for which a relation in one letter holds."""
    sides = [evaluated(side) for side in relation.sides]
    letters = set().union(*(side.free_symbols for side in sides))
    if len(letters) != 1:
        raise ValueError(f"{relation} is not in one letter")
    (letter,) = letters
    result = S.Reals
    for sign, left, right in zip(relation.signs, sides, sides[1:], strict=False):
        result = result.intersect(_solution(sign, left, right, letter))
    return result


def _solution(sign: str, left: Expr, right: Expr, letter: Symbol) -> Set:
    if right == letter and left.is_number:
        left, right = right, left
        sign = {"<": ">", ">": "<", r"\le ": r"\ge ", r"\ge ": r"\le "}.get(sign, sign)
    if left == letter and right.is_number:
        simple = {
            "<": lambda: Interval.open(-oo, right),
            r"\le ": lambda: Interval(-oo, right),
            ">": lambda: Interval.open(right, oo),
            r"\ge ": lambda: Interval(right, oo),
            r"\ne ": lambda: S.Reals - FiniteSet(right),
        }
        if sign in simple:
            return simple[sign]()
    if sign not in _INEQUALITIES:
        raise ValueError("an equation is no set of numbers here")
    return solve_univariate_inequality(_INEQUALITIES[sign](left, right), letter, relational=False)
