"""Compares two values by their types.

`formula_comparison.py` compares numbers and formulas, `set_comparison.py` sets of real numbers.

SymPy may raise TypeError or AttributeError, and not only ValueError or NotImplementedError, for expressions that it
cannot evaluate or compare. `same_value` takes each of these errors as "not equal".
"""

from __future__ import annotations

import re

from sympy import MatrixBase, Rational, pi

from tempo_megatron.grading.math_values.formula_comparison import (
    evaluate_formula,
    same_equation,
    same_expression,
    same_number,
)
from tempo_megatron.grading.math_values.set_comparison import same_set
from tempo_megatron.grading.math_values.sympy_formulas import parse_formula
from tempo_megatron.grading.math_values.units import conversion_factor, parse_unit_words
from tempo_megatron.grading.math_values.values import (
    AmbiguousValue,
    BasedDigits,
    NamedValue,
    Quantity,
    Relation,
    UnparsedText,
    Value,
    ValueSequence,
)

_MAX_ITEMS = 100
_CANNOT_COMPARE = (ValueError, ArithmeticError, TypeError, NotImplementedError, AttributeError)
"""The errors that SymPy raises for expressions that it cannot evaluate or compare."""

_COMMAND_OR_LETTER = r"\\[a-zA-Z]+|{letter}"
_CALL = re.compile(r"([a-zA-Z])\(([a-zA-Z])\)")
_MARKUP = re.compile(r"\\text|[{}$]|(?<!\d)\s|\s(?!\d)")  # 1 2 is not 12
_LETTERS_IN_ORDER = re.compile(r"[A-Z]{3,}")


def same_value(gold: Value, response: Value) -> bool:
    """Returns whether the response's value is the gold's.

    The response may omit the gold's name or unit, or add its own.

    Returns False if SymPy cannot compare the values, whichever error it raises.
    """
    if str(gold) == str(response):
        return bool(str(gold))
    try:
        return _same(gold, response)
    except _CANNOT_COMPARE:
        return False


def _same(gold: Value, response: Value) -> bool:
    """Compares by the types of both values.

    Raises ValueError if no rule compares the two types, and SymPy's errors if it cannot compare the values.
    """
    if isinstance(gold, AmbiguousValue):
        return any(same_value(value, response) for value in gold.values)
    if isinstance(response, AmbiguousValue):
        return any(same_value(gold, value) for value in response.values)
    gold, response = _split_named_tuple(gold), _split_named_tuple(response)
    if isinstance(gold, NamedValue) or isinstance(response, NamedValue):
        return _same_with_names(gold, response)
    if isinstance(gold, Relation) and isinstance(response, Relation):
        return same_equation(gold, response) or same_set(gold, response)
    if isinstance(gold, ValueSequence) and isinstance(response, ValueSequence):
        return _same_sequence(gold, response)
    if isinstance(gold, Quantity) and isinstance(response, Quantity):
        return _same_quantity(gold, response)
    for first, second in ((gold, response), (response, gold)):
        if isinstance(first, BasedDigits):
            return _same_digits(first, second, based_is_gold=first is gold)
        if isinstance(first, ValueSequence) and isinstance(second, Quantity):
            return _sequence_equals_quantity(first, second, sequence_is_gold=first is gold)
    if isinstance(gold, UnparsedText) or isinstance(response, UnparsedText):
        return _same_words(gold, response) or same_set(gold, response)
    return same_set(gold, response)


def _same_with_names(gold: Value, response: Value) -> bool:
    """Compares values of which at least one is named. Two names must agree; a single name may be omitted."""
    if isinstance(gold, NamedValue) and isinstance(response, NamedValue):
        return _same_named(gold, response)
    named, other = (gold, response) if isinstance(gold, NamedValue) else (response, gold)
    assert isinstance(named, NamedValue)
    if isinstance(other, Relation):
        return same_equation(_equation(named), other) if isinstance(named.value, Quantity) else same_set(named, other)
    if isinstance(other, ValueSequence) and _values_by_name(other):
        return False
    return same_value(named.value, other) if named is gold else same_value(other, named.value)


def _same_named(gold: NamedValue, response: NamedValue) -> bool:
    if gold.name == response.name:
        return same_value(gold.value, response.value)
    calls = _CALL.fullmatch(gold.name), _CALL.fullmatch(response.name)
    if calls[0] and calls[1] and calls[0].group(1) == calls[1].group(1):
        return _same_when_renamed(response.value, calls[1].group(2), calls[0].group(2), gold.value)
    return same_equation(_equation(gold), _equation(response))


def _same_when_renamed(value: Value, name: str, new_name: str, gold: Value) -> bool:
    """Returns whether the value is the gold's after one of its letters is replaced by another."""
    if not isinstance(value, Quantity) or not isinstance(gold, Quantity):
        return False
    pattern = _COMMAND_OR_LETTER.format(letter=name)
    latex = re.sub(pattern, lambda match: new_name if match.group() == name else match.group(), value.latex)
    return same_value(gold, Quantity(latex, value.words))


def _equation(named: NamedValue) -> Relation:
    return Relation((named.name, str(named.value)), ("=",))


def _split_named_tuple(value: Value) -> Value:
    """Returns (a, b) = (1, 2) as the list a = 1, b = 2, and any other value unchanged."""
    if (
        not isinstance(value, NamedValue)
        or not value.name.startswith("(")
        or not isinstance(value.value, ValueSequence)
    ):
        return value
    names = value.name[1:-1].split(",")
    if len(names) != len(value.value.items) or value.value.opening != "(":
        return value
    return ValueSequence("", "", tuple(map(NamedValue, names, value.value.items)))


def _values_by_name(value: ValueSequence) -> dict[str, Value]:
    """Returns the values by name if each item has its own name; an empty dictionary otherwise."""
    items = [item for item in value.items if isinstance(item, NamedValue)]
    record = {item.name: item.value for item in items}
    return record if len(record) == len(value.items) else {}


def _same_sequence(gold: ValueSequence, response: ValueSequence) -> bool:
    if max(len(gold.items), len(response.items)) > _MAX_ITEMS:
        return False
    records = _values_by_name(gold), _values_by_name(response)
    if all(records):
        return records[0].keys() == records[1].keys() and all(
            same_value(records[0][name], records[1][name]) for name in records[0]
        )
    if records[0]:
        gold = ValueSequence("(", ")", tuple(records[0].values()))
    elif records[1]:
        items = sorted(records[1].items()) if gold.opening == "(" else records[1].items()
        response = ValueSequence(gold.opening, gold.closing, tuple(value for _, value in items))
    openings = gold.opening, response.opening
    if ":" in openings:
        agree = openings[0] == openings[1] and (
            not gold.closing or not response.closing or gold.closing == response.closing
        )
        return agree and _in_order(gold, response)
    if set(openings) <= {"", r"\{"}:
        return _in_any_order(gold, response)
    if "" in openings:
        return r"\{" not in openings and ("[" not in openings or len(gold.items) > 2) and _in_order(gold, response)
    if gold.opening == response.opening and gold.closing == response.closing:
        return _in_order(gold, response)
    return set(openings) == {"(", "["} and len(gold.items) > 2 and _in_order(gold, response)


def _in_order(gold: ValueSequence, response: ValueSequence) -> bool:
    return len(gold.items) == len(response.items) and all(map(same_value, gold.items, response.items))


def _in_any_order(gold: ValueSequence, response: ValueSequence) -> bool:
    return all(any(same_value(gold_item, item) for item in response.items) for gold_item in gold.items) and all(
        any(same_value(gold_item, item) for gold_item in gold.items) for item in response.items
    )


def _sequence_equals_quantity(sequence: ValueSequence, quantity: Quantity, sequence_is_gold: bool) -> bool:
    """Returns whether all values of a list or set are the quantity, or a vector is a matrix of one row or column."""
    if "matrix" in quantity.latex and sequence.opening == "(":
        matrix = parse_formula(quantity.latex)
        items = [evaluate_formula(item.latex) for item in sequence.items if isinstance(item, Quantity)]
        if (
            not isinstance(matrix, MatrixBase)
            or 1 not in matrix.shape
            or len(items) != len(matrix) != len(sequence.items)
        ):
            return False
        return len(items) == len(sequence.items) and all(map(same_expression, matrix.flat(), items))
    if sequence.opening not in ("", r"\{"):
        return False
    return all(
        same_value(item, quantity) if sequence_is_gold else same_value(quantity, item) for item in sequence.items
    )


def _same_quantity(gold: Quantity, response: Quantity) -> bool:
    if all(_LETTERS_IN_ORDER.fullmatch(value.latex) for value in (gold, response)):
        return gold.latex == response.latex  # names in an order, not a product
    units = [(words.unit if (words := parse_unit_words(value.words)) else None) for value in (gold, response)]
    percents = [unit is not None and unit.label == "percent" for unit in units]
    if percents[0] != percents[1]:
        with_percent, without = (gold, response) if percents[0] else (response, gold)
        if units[percents.index(False)] is not None:
            return False
        if same_number(without.latex, with_percent.latex, Rational(1, 100)):
            return True
        return same_number(without.latex, with_percent.latex) and bool(abs(evaluate_formula(without.latex)) > 1)
    degrees = [unit is not None and unit.label == "degree" for unit in units]
    if degrees[0] != degrees[1] and units[degrees.index(False)] is None:
        with_degree, without = (gold, response) if degrees[0] else (response, gold)
        if same_number(without.latex, with_degree.latex, pi / 180):
            return True
    factor = conversion_factor(units[1], units[0])
    return factor is not None and same_number(
        gold.latex, response.latex, Rational(factor.numerator, factor.denominator)
    )


def _same_digits(based: BasedDigits, other: Value, based_is_gold: bool) -> bool:
    """Returns whether digits without a base are the same as digits with one.

    They can be if they are not decimal, or if the gold without a base looks binary.
    """
    if not isinstance(other, (Quantity, UnparsedText)) or str(other) != based.digits:
        return False
    looks_binary = not based_is_gold and based.base == 2 and len(based.digits) > 3
    return looks_binary or not based.digits.isdecimal()


def _same_words(gold: Value, response: Value) -> bool:
    """Returns whether two texts are the same words. Case counts only for formulas and for a single letter."""
    words = [_MARKUP.sub("", str(value)) for value in (gold, response)]
    if not all(words):
        return False
    if min(map(len, words)) == 1 or any("\\" in str(value).replace(r"\text", "") for value in (gold, response)):
        return words[0] == words[1]
    return words[0].casefold() == words[1].casefold()
