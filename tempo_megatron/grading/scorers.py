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
from tempo_megatron.grading.thinking import without_thinking

KNOWN = "exact, math, choice, free, zebra, judge, reasoning_gym:<task>, or your own as module.function"
_FULL_SCORE = 1.0 - 1e-9


@dataclass(frozen=True)
class Scorer:
    """What a grader's name stands for. All three take texts and may raise anything."""

    grade: Callable[[str, dict[str, Any]], bool] | None
    """(response, answer) -> right or not; None where the judge model says it"""
    extract: Callable[[str], str]
    """response -> its final answer, "" for none"""
    equivalent: Callable[[str, str], bool] = operator.eq
    """two final answers that are not the same text -> do they mean the same"""

    def cluster(self, answers: Sequence[str]) -> list[int]:
        """Cluster numbers, from 0, of one prompt's final answers: each joins the first whose representative it equals.

        Greedy against representatives in order, as EMPO does (arXiv 2504.05812).
        """
        return cluster(answers, self.equivalent)


@cache
def scorer(name: str) -> Scorer:
    """The scorer of a grader's name; it reads responses without their thinking.

    Raises ValueError for a name that is unknown or cannot be imported.
    """
    named = _named(name)
    return replace(named, grade=named.grade and without_thinking(named.grade), extract=without_thinking(named.extract))


def _named(name: str) -> Scorer:
    """The scorer of a grader's name, of whole responses."""
    if name == "math":
        from tempo_megatron.grading import mathematics  # with SymPy; no other grader waits for it

        return Scorer(mathematics.grade, mathematics.extract, mathematics.equivalent)
    if name.startswith("reasoning_gym:"):
        return _reasoning_gym(name.removeprefix("reasoning_gym:"))
    built_in = {
        "exact": Scorer(lambda text, answer: text.strip() == str(answer["answer"]).strip(), str.strip),
        "choice": Scorer(choice.grade, choice.extract),
        "free": Scorer(free.grade, free.extract),
        "zebra": Scorer(zebra.grade, zebra.extract),
        "judge": Scorer(None, final_answer.free_form, _same_words),
    }
    if name in built_in:
        return built_in[name]
    if "." in name:
        return Scorer(_imported(name), final_answer.free_form, _same_words)
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


def _reasoning_gym(task: str) -> Scorer:
    import reasoning_gym

    score = reasoning_gym.get_score_answer_fn(task)
    return Scorer(
        lambda text, answer: score(answer=text, entry=answer) >= _FULL_SCORE, final_answer.free_form, _same_words
    )


def _imported(name: str) -> Callable[[str, dict[str, Any]], bool]:
    module, _, function = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ValueError(f"grader {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"grader {name!r} is not a function")
    return lambda text, answer: bool(found(text, answer))


def _same_words(one: str, other: str) -> bool:
    normalized = normalize(one)
    return bool(normalized) and normalized == normalize(other)
