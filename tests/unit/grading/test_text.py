"""The graders `choice`, `free` and `zebra` on plain examples."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tempo_megatron.grading import choice, free, zebra

GRID = {"header": ["House", "Name", "Drink"], "rows": [["1", "Arnold", "tea"], ["2", "Eric", "root beer"]]}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b)", "B"),
        ("B. Paris", "B"),
        ("Answer: B", "B"),
        ("**Answer:** (b)", "B"),
        ("Answer:\nB", "B"),
        ("The answer is B.", "B"),
        ("The correct option is B, because A and C fail.", "B"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{\\text{(B) Paris}}$", "B"),
        ("At first the answer is A. But then the answer is B.", "B"),
        ("\\boxed{A} was my first guess; after a second look it must be \\boxed{B}", "B"),
        ("Answer: B\nAnswer: B", "B"),
        ("The answer is B. Option A is wrong.", "B"),
        ("I would say Paris (B).", "B"),
        ("Option B is correct", "B"),
        ("The answer is (A) or (B)", ""),
        ("The answer is both A and B.", ""),
        ("\\boxed{A} or \\boxed{B}", ""),
        ("\\boxed{A, B}", ""),
        ("(A)(B)", ""),
        ("The answer is a bird", ""),
        ("A bird in the hand", ""),
        ("I do not know", ""),
        ("", ""),
    ],
)
def test_the_letter_of_a_multiple_choice_response(text: str, letter: str) -> None:
    """The last statement counts. Several letters in it, or words that begin with a letter, are no answer."""
    assert choice.extract(text) == letter
    assert choice.grade(text, {"answer": "B"}) == (letter == "B")


def test_a_label_of_multiple_choice_is_a_letter_or_an_index() -> None:
    """Data sets write either. Any other label is a mistake in the data and raises an error."""
    assert {choice.gold_letter(label) for label in ("C", "c", "(C)", "C.", 2, "2")} == {"C"}
    with pytest.raises(ValueError, match="Paris"):
        choice.gold_letter("Paris")


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("(A)", "So the answer is (A).", True),
        ("(A)", "So the answer is (A) 05/01/2021.", True),
        ("(A)", "\\boxed{A}", True),
        ("(A)", "So the answer is (B).", False),
        ("(A)", "So the answer is (A) or (B).", False),
        ("(A)", "The answer is (A)(B)", False),
        ("Yes", "The answer is **yes**.", True),
        ("Yes", "Yes, since all of them moved.", True),
        ("Yes", "So the answer is yes or no.", False),
        ("Yes", "So the answer is No.", False),
        ("True", "Therefore the answer is: True", True),
        ("valid", "The answer is invalid.", False),
        ("1234", "The answer is 1,234.0.", True),
        ("-3", "So the answer is 3.", False),
        ("apple banana cherry", "The answer is apple, banana, cherry.", True),
        ("apple banana cherry", "The answer is [apple, banana, cherry]", True),
        ("apple banana cherry", "The answer is banana, apple, cherry.", False),
        ("] ) }", "So the answer is ] ) }.", True),
        ("] ) }", "So the answer is ]) }", True),
        ("] ) }", "So the answer is ] } )", False),
        ("Grade School", "the answer is grade  school", True),
        ("Yes", "", False),
    ],
)
def test_free_answers_are_compared_when_normalized(gold: str, text: str, right: bool) -> None:
    """BIG-Bench Hard has options, decisions, numbers, lists and brackets."""
    assert free.grade(text, {"answer": gold}) is right


def grid(**changes: Any) -> dict[str, Any]:
    return {"House 1": {"Name": "Arnold", "Drink": "Tea"}, "House 2": {"Name": "Eric", "Drink": "root beer"}} | changes


def test_a_grid_is_right_when_every_cell_is() -> None:
    """An incomplete grid is wrong. The last object counts, with or without reasoning before it."""
    right, wrong = (
        json.dumps({"reasoning": "{...}", "solution": grid()}),
        json.dumps({"solution": grid(**{"House 2": {}})}),
    )
    extra = json.dumps({"solution": grid(**{"House 3": {"Name": "Bob", "Drink": "milk"}})})
    answer = {"answer": GRID}
    assert zebra.grade(f"I have {{2}} houses.\n```json\n{right}\n```", answer)
    assert zebra.grade(f"{wrong}\nNo:\n{right}", answer)
    assert not zebra.grade(f"{right}\nNo:\n{wrong}", answer)
    assert not zebra.grade(extra, answer)
    assert not zebra.grade("", answer)
    assert not zebra.grade('{"solution": 3}', answer)
    assert zebra.extract(right) == zebra.extract(f"So {right}") != ""
    assert zebra.extract("none") == ""
