"""Whether two values are the same, by kind. `numbers.py` compares numbers and formulas, `sets.py` sets of numbers."""

from __future__ import annotations

import re

from sympy import MatrixBase, Rational, pi

from tempo_megatron.grading.formulas import expression
from tempo_megatron.grading.numbers import evaluated, same_equation, same_expression, same_number
from tempo_megatron.grading.sets import same_set
from tempo_megatron.grading.units import read_words, same_amount
from tempo_megatron.grading.values import Based, Named, Opaque, Quantity, Readings, Relation, Sequence, Value

_MOST_ITEMS = 100
_CANNOT_COMPARE = (ValueError, ArithmeticError, TypeError, NotImplementedError, AttributeError)
"""what SymPy raises for expressions that it cannot evaluate or compare"""

_COMMAND_OR_LETTER = r"\\[a-zA-Z]+|{letter}"
_CALL = re.compile(r"([a-zA-Z])\(([a-zA-Z])\)")
_MARKUP = re.compile(r"\\text|[{}$]|(?<!\d)\s|\s(?!\d)")  # 1 2 is not 12
_LETTERS_IN_ORDER = re.compile(r"[A-Z]{3,}")


def same(gold: Value, response: Value) -> bool:
    """Whether the response's value is the gold's. It may leave out the gold's name and unit, and add its own."""
    if str(gold) == str(response):
        return bool(str(gold))
    try:
        return _same(gold, response)
    except _CANNOT_COMPARE:
        return False


def _same(gold: Value, response: Value) -> bool:
    """By the kinds of both. Raises ValueError where kinds have no rule, and SymPy's errors where it cannot compare."""
    if isinstance(gold, Readings):
        return any(same(value, response) for value in gold.values)
    if isinstance(response, Readings):
        return any(same(gold, value) for value in response.values)
    gold, response = _named_apart(gold), _named_apart(response)
    if isinstance(gold, Named) or isinstance(response, Named):
        return _same_with_names(gold, response)
    if isinstance(gold, Relation) and isinstance(response, Relation):
        return same_equation(gold, response) or same_set(gold, response)
    if isinstance(gold, Sequence) and isinstance(response, Sequence):
        return _same_sequence(gold, response)
    if isinstance(gold, Quantity) and isinstance(response, Quantity):
        return _same_quantity(gold, response)
    for one, other in ((gold, response), (response, gold)):
        if isinstance(one, Based):
            return _same_digits(one, other, based_is_gold=one is gold)
        if isinstance(one, Sequence) and isinstance(other, Quantity):
            return _same_as_one(one, other, one_is_gold=one is gold)
    if isinstance(gold, Opaque) or isinstance(response, Opaque):
        return _same_words(gold, response) or same_set(gold, response)
    return same_set(gold, response)


def _same_with_names(gold: Value, response: Value) -> bool:
    """At least one of them is `Named`: two names must agree, and one alone may be left out."""
    if isinstance(gold, Named) and isinstance(response, Named):
        return _same_named(gold, response)
    named, other = (gold, response) if isinstance(gold, Named) else (response, gold)
    assert isinstance(named, Named)
    if isinstance(other, Relation):
        return same_equation(_equation(named), other) if isinstance(named.value, Quantity) else same_set(named, other)
    if isinstance(other, Sequence) and _record(other):
        return False
    return same(named.value, other) if named is gold else same(other, named.value)


def _same_named(gold: Named, response: Named) -> bool:
    if gold.name == response.name:
        return same(gold.value, response.value)
    calls = _CALL.fullmatch(gold.name), _CALL.fullmatch(response.name)
    if calls[0] and calls[1] and calls[0].group(1) == calls[1].group(1):
        return _renamed(response.value, calls[1].group(2), calls[0].group(2), gold.value)
    return same_equation(_equation(gold), _equation(response))


def _renamed(value: Value, name: str, new: str, gold: Value) -> bool:
    """Whether the value is the gold's when one letter of it stands for another."""
    if not isinstance(value, Quantity) or not isinstance(gold, Quantity):
        return False
    pattern = _COMMAND_OR_LETTER.format(letter=name)
    latex = re.sub(pattern, lambda match: new if match.group() == name else match.group(), value.latex)
    return same(gold, Quantity(latex, value.words))


def _equation(named: Named) -> Relation:
    return Relation((named.name, str(named.value)), ("=",))


def _named_apart(value: Value) -> Value:
    """(a, b) = (1, 2) as a = 1, b = 2; any other value as it is."""
    if not isinstance(value, Named) or not value.name.startswith("(") or not isinstance(value.value, Sequence):
        return value
    names = value.name[1:-1].split(",")
    if len(names) != len(value.value.items) or value.value.opening != "(":
        return value
    return Sequence("", "", tuple(map(Named, names, value.value.items)))


def _record(value: Sequence) -> dict[str, Value]:
    """The values by name where each item has a name of its own; empty otherwise."""
    items = [item for item in value.items if isinstance(item, Named)]
    record = {item.name: item.value for item in items}
    return record if len(record) == len(value.items) else {}


def _same_sequence(gold: Sequence, response: Sequence) -> bool:
    if max(len(gold.items), len(response.items)) > _MOST_ITEMS:
        return False
    records = _record(gold), _record(response)
    if all(records):
        return records[0].keys() == records[1].keys() and all(
            same(records[0][name], records[1][name]) for name in records[0]
        )
    if records[0]:
        gold = Sequence("(", ")", tuple(records[0].values()))
    elif records[1]:
        items = sorted(records[1].items()) if gold.opening == "(" else records[1].items()
        response = Sequence(gold.opening, gold.closing, tuple(value for _, value in items))
    kinds = gold.opening, response.opening
    if ":" in kinds:
        agree = kinds[0] == kinds[1] and (not gold.closing or not response.closing or gold.closing == response.closing)
        return agree and _in_order(gold, response)
    if set(kinds) <= {"", r"\{"}:
        return _in_any_order(gold, response)
    if "" in kinds:
        return r"\{" not in kinds and ("[" not in kinds or len(gold.items) > 2) and _in_order(gold, response)
    if gold.opening == response.opening and gold.closing == response.closing:
        return _in_order(gold, response)
    return set(kinds) == {"(", "["} and len(gold.items) > 2 and _in_order(gold, response)


def _in_order(gold: Sequence, response: Sequence) -> bool:
    return len(gold.items) == len(response.items) and all(map(same, gold.items, response.items))


def _in_any_order(gold: Sequence, response: Sequence) -> bool:
    return all(any(same(one, other) for other in response.items) for one in gold.items) and all(
        any(same(one, other) for one in gold.items) for other in response.items
    )


def _same_as_one(sequence: Sequence, quantity: Quantity, one_is_gold: bool) -> bool:
    """A list or set whose values are all this one; or a vector as a matrix of one row or column."""
    if "matrix" in quantity.latex and sequence.opening == "(":
        matrix = expression(quantity.latex)
        items = [evaluated(item.latex) for item in sequence.items if isinstance(item, Quantity)]
        if (
            not isinstance(matrix, MatrixBase)
            or 1 not in matrix.shape
            or len(items) != len(matrix) != len(sequence.items)
        ):
            return False
        return len(items) == len(sequence.items) and all(map(same_expression, matrix.flat(), items))
    if sequence.opening not in ("", r"\{"):
        return False
    return all(same(item, quantity) if one_is_gold else same(quantity, item) for item in sequence.items)


def _same_quantity(gold: Quantity, response: Quantity) -> bool:
    if all(_LETTERS_IN_ORDER.fullmatch(value.latex) for value in (gold, response)):
        return gold.latex == response.latex  # an order of names, no product
    units = [(words.unit if (words := read_words(value.words)) else None) for value in (gold, response)]
    percents = [unit is not None and unit.label == "percent" for unit in units]
    if percents[0] != percents[1]:
        with_percent, without = (gold, response) if percents[0] else (response, gold)
        if units[percents.index(False)] is not None:
            return False
        if same_number(without.latex, with_percent.latex, Rational(1, 100)):
            return True
        return same_number(without.latex, with_percent.latex) and bool(abs(evaluated(without.latex)) > 1)
    degrees = [unit is not None and unit.label == "degree" for unit in units]
    if degrees[0] != degrees[1] and units[degrees.index(False)] is None:
        with_degree, without = (gold, response) if degrees[0] else (response, gold)
        if same_number(without.latex, with_degree.latex, pi / 180):
            return True
    factor = same_amount(units[1], units[0])
    return factor is not None and same_number(
        gold.latex, response.latex, Rational(factor.numerator, factor.denominator)
    )


def _same_digits(based: Based, other: Value, based_is_gold: bool) -> bool:
    """Digits without a base are those of one where they can be no decimal number, or where a gold looks binary."""
    if not isinstance(other, (Quantity, Opaque)) or str(other) != based.digits:
        return False
    binary = not based_is_gold and based.base == 2 and len(based.digits) > 3
    return binary or not based.digits.isdecimal()


def _same_words(gold: Value, response: Value) -> bool:
    """Whether two texts are the same words; only a lone letter's case counts."""
    words = [_MARKUP.sub("", str(value)) for value in (gold, response)]
    if not all(words):
        return False
    if min(map(len, words)) == 1 or any("\\" in str(value).replace(r"\text", "") for value in (gold, response)):
        return words[0] == words[1]
    return words[0].casefold() == words[1].casefold()
