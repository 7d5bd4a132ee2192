"""Graders by name."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tempo_megatron.grading import choice, final_answer, free, zebra
from tempo_megatron.grading.answer_forms import normalize
from tempo_megatron.grading.plain_labels import check_plain_label
from tempo_megatron.grading.thinking import without_thinking

KNOWN = "exact, math, choice, free, zebra, judge, reasoning_gym:<task>, or your own as module.function"
_FULL_SCORE = 1.0 - 1e-9


@dataclass(frozen=True)
class AnswerScorer:
    """What a grader's name stands for. All take texts or labels and may raise anything."""

    grade: Callable[[str, dict[str, Any]], bool] | None
    """(response, answer) -> right or not; None where the judge model says it"""
    extract: Callable[[str], str]
    """response -> its final answer, "" for none"""
    check_label: Callable[[dict[str, Any]], None]
    """raises ValueError that says why no response can be graded right against this label"""
    equivalent: Callable[[str, str], bool] = operator.eq
    """two final answers that are not the same text -> do they mean the same"""

    def cluster(self, answers: Sequence[str]) -> list[int]:
        """Cluster numbers, from 0, of one prompt's final answers: each joins the first whose representative it equals.

        Greedy against representatives in order, as EMPO does (arXiv 2504.05812).
        """
        return cluster(answers, self.equivalent)


@cache
def scorer(name: str) -> AnswerScorer:
    """The scorer of a grader's name; it reads responses without their thinking.

    Raises ValueError for a name that is unknown or cannot be imported.
    """
    named = _named(name)
    return replace(named, grade=named.grade and without_thinking(named.grade), extract=without_thinking(named.extract))


def _named(name: str) -> AnswerScorer:
    """The scorer of a grader's name, of whole responses."""
    if name == "math":
        from tempo_megatron.grading import mathematics  # with SymPy; no other grader waits for it

        return AnswerScorer(mathematics.grade, mathematics.extract, mathematics.check_label, mathematics.equivalent)
    if name.startswith("reasoning_gym:"):
        return _reasoning_gym(name.removeprefix("reasoning_gym:"))
    built_in = {
        "exact": AnswerScorer(_exact, str.strip, check_plain_label),
        "choice": AnswerScorer(choice.grade, choice.extract, choice.check_label),
        "free": AnswerScorer(free.grade, free.extract, free.check_label),
        "zebra": AnswerScorer(zebra.grade, zebra.extract, zebra.check_label),
        "judge": AnswerScorer(None, final_answer.free_form, check_plain_label, _same_words),
    }
    if name in built_in:
        return built_in[name]
    if "." in name:
        return _imported(name)
    raise ValueError(f"unknown grader {name!r}; known: {KNOWN}")


def cluster(answers: Sequence[str], equivalent: Callable[[str, str], bool]) -> list[int]:
    """See `Scorer.cluster`. `equivalent` is asked about no pair twice, and never about equal texts."""
    representatives: list[str] = []
    numbers: dict[str, int] = {}
    for answer in answers:
        if answer not in numbers:
            joined = (number for number, other in enumerate(representatives) if equivalent(other, answer))
            numbers[answer] = next(joined, len(representatives))
            if numbers[answer] == len(representatives):
                representatives.append(answer)
    return [numbers[answer] for answer in answers]


def _exact(text: str, answer: dict[str, Any]) -> bool:
    return text.strip() == str(answer["answer"]).strip()


def _reasoning_gym(task: str) -> AnswerScorer:
    import reasoning_gym

    score = reasoning_gym.get_score_answer_fn(task)

    def grade(text: str, answer: dict[str, Any]) -> bool:
        return bool(score(answer=text, entry=answer) >= _FULL_SCORE)

    def check_label(answer: dict[str, Any]) -> None:
        if "metadata" not in answer:
            raise ValueError("a row needs `metadata`, the task's own, for its scorer")
        if answer["answer"] is not None and not grade(answer["answer"], answer):  # some tasks score without an answer
            raise ValueError(f"the task's scorer does not accept {answer['answer']!r} itself")

    return AnswerScorer(grade, final_answer.free_form, check_label, _same_words)


def _imported(name: str) -> AnswerScorer:
    """A user's function of (response, answer). Its attribute `check_label`, where it has one, checks labels."""
    module, _, function = name.rpartition(".")
    try:
        grade = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ValueError(f"grader {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(grade):
        raise ValueError(f"grader {name!r} is not a function")
    check_label = getattr(grade, "check_label", _accept)
    return AnswerScorer(
        lambda text, answer: bool(grade(text, answer)), final_answer.free_form, check_label, _same_words
    )


def _accept(answer: dict[str, Any]) -> None:
    """What a label of a user's function must be is known to that function alone."""


def _same_words(one: str, other: str) -> bool:
    normalized = normalize(one)
    return bool(normalized) and normalized == normalize(other)
