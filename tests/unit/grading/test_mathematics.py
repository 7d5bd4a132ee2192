"""The grader `math` against verdicts by hand. `tests/processes` has the whole fixtures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempo_megatron.grading.mathematics import check_label, equivalent, extract, grade

FIXTURES = Path(__file__).parents[2] / "fixtures" / "grading"
CASES = [
    case
    for line in (FIXTURES / "cases.jsonl").read_text().splitlines()
    if (case := json.loads(line))["grader"] == "math"
]
HONEST = [
    row
    for row in map(json.loads, (FIXTURES / "mathematics.jsonl").read_text().splitlines())
    if row.get("differs") != "hostile"
]


def test_extracted_answers_compare_by_value() -> None:
    """Clusters group equal values in any form."""
    assert equivalent(extract("so \\boxed{\\frac12}"), extract("The answer is 0.5"))
    assert equivalent(extract("\\boxed{3} or \\boxed{5}"), extract("x = 5 or x = 3"))
    assert not equivalent(extract("\\boxed{(1,2)}"), extract("\\boxed{[1,2]}"))
    assert extract("I do not know") == ""


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("7", r"\neq 7", False),
        ("7", r"\ge 7", False),
        ("7", "3x=7", False),
        ("7", "x^2=7", False),
        ("7", "8=7", False),
        ("7", "x+y=7", False),
        ("7", r"n \mid 7", False),
        ("7", r"\neg 7", False),
        ("7", r"\approx 7", False),
        ("7", "x = 7", True),
        ("7", "f(2) = 7", True),
        ("7", r"\text{Area} = 7", True),
        ("7", "3+4=7", True),
        ("0", "x(x-5)=0", False),
        ("1", "x^2+y^2=1", False),
        ("x^2+y^2=1", "1", False),
        ("x+y=1", "2x+2y=2", True),
        ("y=x", "(y-x)(y-2x)=0", False),
        ("x>3", "3<x", True),
        ("(3,\\infty)", "x>3", True),
        ("5", r"5 \text{ is wrong}", False),
        ("5", r"5 \text{ million}", False),
        ("5000000", r"5 \text{ million}", True),
        ("5", r"5 \text{ hours } 30 \text{ minutes}", False),
        ("330", r"5 \text{ hours } 30 \text{ minutes}", True),
        ("5", r"5 \text{ or more}", False),
        ("5", r"5 \text{ apples}", True),
        (r"5 \text{ km}", r"5 \text{ m}", False),
        (r"5 \text{ km}", r"5000 \text{ m}", True),
        ("5", "5^T", False),
        ("5", r"5_{\max}", False),
        ("5", "5 6", False),
        ("a=1, b=2", "2, 1", False),
        ("(2,3)", "y=3, x=2", True),
    ],
)
def test_nothing_of_an_answer_is_dropped(gold: str, answer: str, right: bool) -> None:
    """A left side, a sign, words and a scale count. Otherwise a policy would learn to stop one step early."""
    assert grade(rf"So \boxed{{{answer}}}.", {"answer": gold}) is right


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"\frac{1}{2^{80}}", r"\frac{1}{2^{79}}", False),
        (r"\frac{1}{2^{80}}", "2^{-80}", True),
        ("10^{-12}", "0", False),
        ("e^{-50}", "e^{-60}", False),
        (r"\sqrt{10^{40}+1}", "10^{20}", False),
        ("0.0000012", "0.0000014", False),
        ("2^{200}-1", "2^{200}", False),
        (r"\frac{1}{7}", "0.142857", True),
        (r"\frac{1}{7}", "0.14286", False),
        (r"\sqrt2", "1.41421356", True),
        ("0.1", "0.10000000000000001", True),
        ("99999999.99", "100000000", False),
        (r"\frac{2}{3}", r"66.67\%", False),
        (r"\frac{2}{3}", r"66\frac{2}{3}\%", True),
    ],
)
def test_tolerance_is_relative(gold: str, answer: str, right: bool) -> None:
    """Different tiny values differ, and a decimal equals a value that it rounds to six digits."""
    assert grade(rf"\boxed{{{answer}}}", {"answer": gold}) is right


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("42", "The answer is 42. I checked it for n = 3.", True),
        ("3", "The answer is 42. I checked it for n = 3.", False),
        ("5", "The answer is (3, 5).", False),
        ("(3,5)", "The answer is (3, 5).", True),
        ("3", "The answer is minus 3.", False),
        ("3", "The answer is 3x.", False),
        ("3", "The answer is 3 million.", False),
        ("3", "The answer cannot be 3.", False),
        ("4", "The answer is 4 or possibly 5.", False),
        ("4", "The answer is 4, maybe 5.", False),
        ("7", "I give up on problem 7", False),
        ("73", "**Final Answer**\n\n73", True),
        ("5", "3 5", False),
    ],
)
def test_prose_states_its_answer(gold: str, response: str, right: bool) -> None:
    """Later text does not override "answer is". Denials, hedges and lists are no single value."""
    assert grade(response, {"answer": gold}) is right


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("5", "m=\\boxed{2}, n=\\boxed{3}. The answer is \\boxed{5}.", True),
        ("5", "m=\\boxed{2}, n=\\boxed{3}, m+n=\\boxed{5}", True),
        ("204", "\\boxed{12} \\cdot \\boxed{17} = \\boxed{204}", True),
        ("12", "x = \\boxed{4}\n\nn = \\boxed{12}", False),
        ("42", "The answer is \\boxed{42}. (Put it inside \\boxed{answer} as told.)", True),
        ("5", "I got \\boxed{5} but the truth is \\boxed{}", False),
        ("5", "I got \\boxed{5} at first but then \\boxed{", False),
        ("5", "\\boxed{5} million", False),
        ("5", "$x \\ne \\boxed{5}$", False),
        ("5", "\\boxed{5} is wrong", False),
        ("5", "so x => \\boxed{5} a prime, which is not a surprise", True),
    ],
)
def test_the_last_boxes_are_the_answer(gold: str, response: str, right: bool) -> None:
    """The pairs have intermediate boxes, a box that is taken back, and text directly beside a box."""
    assert grade(response, {"answer": gold}) is right


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("90", "90°", True),
        (r"\cos 15^\circ", r"\cos 15", False),
        (r"\frac12", r"\sin 30^\circ", True),
        ("12_5", "12_7", False),
        ("12", "12_5", False),
        ("2A", "2A_{16}", True),
        ("n", "N", False),
        (r"\text{Evelyn}", "evelyn", True),
        ("5", r"\textbf{(B) } 5", True),
        ("2500", "2.5e3", True),
        (r"\frac13", r"0.\overline{3}", True),
        (r"\frac13", "0.333...", True),
        (r"\frac13", "0.333", False),
        ("-3", "\u22123", True),
        ("1000", "\uff11\uff0c\uff10\uff10\uff10", True),
        ("\\$32,\\!348", "32348", True),
        ("100, 200", "100,200", True),
        ("100, 200", "100200", False),
        ("3:45 \\text{ PM}", "3:45 \\text{ AM}", False),
    ],
)
def test_notation_is_read(gold: str, answer: str, right: bool) -> None:
    """The pairs have degrees, bases, case, option labels, repeating decimals, Unicode, money and times."""
    assert grade(rf"\boxed{{{answer}}}", {"answer": gold}) is right


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("nan", "not a number"),
        (float("nan"), "not a number"),
        (None, "not None"),
        ({"value": 3}, "not {'value'"),
        (["3"], "not \\["),
        ("\\frac{1}{2", "never closed"),
        ("3}", "closes nothing"),
        ("\\frac{1}", "cannot be read"),
        ("\text{yes}", "backslash"),
        ("\frac{1}{2}", "control character"),
        ("\boxed{3}", "control character"),
        ("x \neq 3", "backslash"),
        ("?", "no value"),
        ("1" * 3000, "3000 characters"),
    ],
)
def test_a_label_that_no_response_can_get_right_is_refused(label: object, why: str) -> None:
    """Without the check, a run would silently grade each response to such a row wrong."""
    with pytest.raises(ValueError, match=why):
        check_label({"answer": label})


def test_labels_of_the_fixtures_grade_themselves() -> None:
    """No valid label is refused. Labels are parsed as responses are."""
    golds = [case["answer"] for case in CASES] + [row["gold"] for row in HONEST] + [42, 3.5, "\\$42", "42."]
    for gold in golds:
        check_label({"answer": gold})
