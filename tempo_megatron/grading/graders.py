"""Maps a grader's name to the functions that grade with it."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tempo_megatron.grading import choice, free, zebra
from tempo_megatron.grading.answer_normalization import normalize_answer
from tempo_megatron.grading.boxes import closing_boxes
from tempo_megatron.grading.label_text import check_label_text
from tempo_megatron.grading.thinking import without_thinking

KNOWN_GRADERS = "exact, math, choice, free, zebra, judge, reasoning_gym:<task>, or your own as module.function"


@dataclass(frozen=True)
class GraderFunctions:
    """The functions of one grader. Each takes texts or labels and may raise any exception."""

    grade: Callable[[str, dict[str, Any]], bool] | None
    """Takes (response, answer) and returns whether the response is right. It is None where the judge model decides."""
    extract: Callable[[str], str]
    """Takes a response and returns its final answer, "" if there is none."""
    check_label: Callable[[dict[str, Any]], None]
    """Raises ValueError that says why no response can be graded right against this label."""
    equivalent: Callable[[str, str], bool] = operator.eq
    """Takes two final answers whose texts differ and returns whether they mean the same."""

    def cluster(self, answers: Sequence[str]) -> list[int]:
        """Returns a cluster number, from 0, for each of one prompt's final answers.

        An answer joins the first cluster whose representative it equals. The clustering is greedy, over
        representatives in order, as in EMPO (arXiv 2504.05812).
        """
        return cluster(answers, self.equivalent)


@cache
def grader_functions(name: str) -> GraderFunctions:
    """Returns the functions of a grader by its name. They read responses without their thinking.

    Raises ValueError for a name that is unknown or cannot be imported.
    """
    full = _functions_of_full_responses(name)
    return replace(full, grade=full.grade and without_thinking(full.grade), extract=without_thinking(full.extract))


def _functions_of_full_responses(name: str) -> GraderFunctions:
    """Returns the functions of a grader by its name. They read responses with their thinking."""
    if name == "math":
        from tempo_megatron.grading import mathematics  # imports SymPy, which no other grader needs

        return GraderFunctions(mathematics.grade, mathematics.extract, mathematics.check_label, mathematics.equivalent)
    if name.startswith("reasoning_gym:"):
        return _reasoning_gym(name.removeprefix("reasoning_gym:"))
    built_in = {
        "exact": GraderFunctions(_exact, str.strip, check_label_text),
        "choice": GraderFunctions(choice.grade, choice.extract, choice.check_label),
        "free": GraderFunctions(free.grade, free.extract, free.check_label),
        "zebra": GraderFunctions(zebra.grade, zebra.extract, zebra.check_label),
        "judge": GraderFunctions(None, final_answer_text, check_label_text, _same_words),
    }
    if name in built_in:
        return built_in[name]
    if "." in name:
        return _imported(name)
    raise ValueError(f"unknown grader {name!r}; known: {KNOWN_GRADERS}")


def cluster(answers: Sequence[str], equivalent: Callable[[str, str], bool]) -> list[int]:
    """Returns cluster numbers as `GraderFunctions.cluster` does.

    It calls `equivalent` at most once for a pair, and never for equal texts.
    """
    representatives: list[str] = []
    numbers: dict[str, int] = {}
    for answer in answers:
        if answer not in numbers:
            matches = (number for number, other in enumerate(representatives) if equivalent(other, answer))
            numbers[answer] = next(matches, len(representatives))
            if numbers[answer] == len(representatives):
                representatives.append(answer)
    return [numbers[answer] for answer in answers]


def final_answer_text(text: str) -> str:
    """Returns the final answer of a response in any form: in `<answer>` tags, else in boxes, else all of it."""
    before, closing, _ = text.rpartition("</answer>")
    _, opening, tagged = before.rpartition("<answer>")
    if opening and closing:
        return tagged.strip()
    return ", ".join(closing_boxes(text)) or text.strip()


def _exact(text: str, answer: dict[str, Any]) -> bool:
    return text.strip() == str(answer["answer"]).strip()


def _reasoning_gym(task: str) -> GraderFunctions:
    import reasoning_gym

    score = reasoning_gym.get_score_answer_fn(task)

    def grade(text: str, answer: dict[str, Any]) -> bool:
        # Not a little less: spell_backward gives the right word with letters behind it six sixths, summed to 1 - 1e-16.
        return bool(score(answer=text, entry=answer) == 1.0)

    def check_label(answer: dict[str, Any]) -> None:
        if "metadata" not in answer:
            raise ValueError("a row needs `metadata`, which the task's scorer reads")
        if answer["answer"] is not None and not grade(
            answer["answer"], answer
        ):  # some tasks score entries that have no answer
            raise ValueError(f"the task's scorer does not accept {answer['answer']!r} itself")

    return GraderFunctions(grade, final_answer_text, check_label, _same_words)


def _imported(name: str) -> GraderFunctions:
    """Returns the functions of a user's grader, a function of (response, answer).

    The function may have an attribute `check_label`, which checks labels.
    """
    module, _, function = name.rpartition(".")
    try:
        grade = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing a user's module may raise any exception
        raise ValueError(f"grader {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(grade):
        raise ValueError(f"grader {name!r} is not a function")
    check_label = getattr(grade, "check_label", _accept_label)
    return GraderFunctions(lambda text, answer: bool(grade(text, answer)), final_answer_text, check_label, _same_words)


def _accept_label(answer: dict[str, Any]) -> None:
    """Accepts any label: only the user's function knows what its labels must be."""


def _same_words(first: str, second: str) -> bool:
    normalized = normalize_answer(first)
    return bool(normalized) and normalized == normalize_answer(second)
