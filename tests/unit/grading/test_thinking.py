"""No grader reads thinking: a guess in it, right or wrong, does not change the grade."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tempo_megatron.grading.graders import grader_functions
from tempo_megatron.grading.thinking import after_thinking

GRADERS = "tests.fixtures.grading.user_graders"
GRID = {"header": ["House", "Name"], "rows": [["1", "Eric"], ["2", "Arnold"]]}


def solution(first: str, second: str) -> str:
    return json.dumps({"solution": {"House 1": {"Name": first}, "House 2": {"Name": second}}})


SPELL = {"question": "", "answer": "olleh", "metadata": {}}
GRADERS: list[tuple[str, dict[str, Any], str, str]] = [
    ("math", {"answer": "42"}, "\\boxed{42}", "The answer is 41."),
    ("choice", {"answer": "C"}, "Answer: C", "Answer: D"),
    ("free", {"answer": "yes"}, "Answer: yes", "Answer: no"),
    ("zebra", {"answer": GRID}, solution("Eric", "Arnold"), solution("Arnold", "Eric")),
    ("exact", {"answer": "42"}, "42", "41"),
    ("reasoning_gym:spell_backward", SPELL, "olleh", "hello"),
    (f"{GRADERS}.starts_with", {"answer": "y"}, "yes", "no"),
]


@pytest.mark.parametrize(("name", "answer", "right", "wrong"), GRADERS, ids=[row[0] for row in GRADERS])
def test_each_grader_reads_only_the_text_after_the_thinking(
    name: str, answer: dict[str, Any], right: str, wrong: str
) -> None:
    """A policy gets no reward for a guess that it takes back, and no penalty for one that it corrects."""
    grader = grader_functions(name)
    assert grader.grade is not None
    assert grader.grade(right, answer)
    assert grader.grade(f"<think>{wrong}</think>\n{right}", answer)
    assert grader.grade(f"{wrong}\n</think>\n\n{right}", answer)
    assert not grader.grade(f"<think>{right}</think>\n{wrong}", answer)
    assert not grader.grade(f"<think>{right}</think>\n", answer)
    assert not grader.grade(f"<think>{right}", answer)
    assert grader.extract(f"<think>{wrong}</think>{right}") == grader.extract(right)
    assert grader.extract(f"<think>{right}</think>") == grader.extract("")


def test_the_judge_sees_no_thinking() -> None:
    """The grader `judge` only extracts here. Answer tags count in the answer, not in the thinking."""
    extract = grader_functions("judge").extract
    assert extract("<think><answer>Lyon</answer> \\boxed{Lyon}</think> Paris") == "Paris"
    assert extract("<think>Lyon</think><answer>Paris</answer>") == "Paris"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("5", "5"),
        ("<think>4</think>5", "5"),
        ("4</think>5", "5"),
        ("<think>3</think>4</think>5", "5"),
        ("3<think>4</think>5", "5"),
        ("<think>4<think>3</think>5", "5"),
        ("<think>4", ""),
        ("<think>4</think>5<think>6", "5"),
        ("<Thinking>4</Thinking>5", "5"),
        ("<thought>4</thought>5", "5"),
        ("<reasoning>4</reasoning><answer>5</answer>", "<answer>5</answer>"),
        ("<|begin_of_thought|>4<|end_of_thought|>5", "5"),
        ("<seed:think>4</seed:think>5", "5"),
        ("[THINK]4[/THINK]5", "5"),
        ("I think 5", "I think 5"),
        ("if x<think then 5", "if x<think then 5"),
        ("</think>" * 10_000 + "5", "5"),
    ],
)
def test_thinking_ends_with_its_last_closing_tag(response: str, answer: str) -> None:
    """A prompt may open the thinking. Unclosed text is thinking. Models spell the tags differently."""
    assert after_thinking(response) == answer
