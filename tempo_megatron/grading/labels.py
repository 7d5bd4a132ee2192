"""Labels graded against themselves, before anything starts."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence

from tempo_megatron.config import Config, GradingConfig
from tempo_megatron.data.identity import normalize_question
from tempo_megatron.data.questions import data_file_problems
from tempo_megatron.data.reading import Problem, RowLocation, format_problems
from tempo_megatron.data.sources import Row, read_answered_rows
from tempo_megatron.grading.choice import gold_letter
from tempo_megatron.grading.errors import GradingError
from tempo_megatron.grading.grader import worker_pool
from tempo_megatron.grading.pool import GradingTask, Outcome
from tempo_megatron.grading.scorers import scorer

_OPTION = re.compile(r"(?<!\S)\(([A-Za-z])\)|^[ \t]*([A-Za-z])[.):]\s", re.MULTILINE)
_OWN_SCORER = "reasoning_gym:"
_DEFAULTS = GradingConfig()


def label_problems(rows: Sequence[Row], config: GradingConfig = _DEFAULTS) -> list[str]:
    """A line for each label that no response can get right, and for each question whose repeats have other answers.

    All `rows` have an answer and a place. Graders that cannot be loaded are left out: `grader.problems` lists them.
    """
    wrong = unanswerable(rows, config)
    places = {place for place, _ in wrong}
    others = [row for row in rows if row.location not in places]
    return format_problems([*wrong, *map(contradiction, contradictions(others, config))])


def problems_of_files(config: Config) -> list[str]:
    """What is wrong with a recipe's data files and with their labels, a line each; no tokenizer is needed."""
    return [
        *data_file_problems(config.data),
        *label_problems(read_answered_rows(config.data.sources()), config.grading),
    ]


def unanswerable(rows: Sequence[Row], config: GradingConfig = _DEFAULTS) -> list[Problem]:
    """The labels that no response can get right, or that take longer to grade than a response may."""
    checked = _with_a_grader(rows)
    answers = {(row.grader, _text(row.answer)): row for row in checked}  # thousands of questions share few answers
    tasks = [
        GradingTask(row.grader, "check_label", (row.answer,), config.time_limit_seconds) for row in answers.values()
    ]
    reasons = dict(zip(answers, map(_reason, _run(tasks, config)), strict=True))
    judged = [(row, reasons[row.grader, _text(row.answer)] or _past_options(row)) for row in checked]
    return [
        (row.location or RowLocation(row.source), f"grader {row.grader}: {reason}") for row, reason in judged if reason
    ]


def contradictions(rows: Sequence[Row], config: GradingConfig = _DEFAULTS) -> list[list[Row]]:
    """Rows of one question and grader whose answers differ in value, the first row of each value.

    A reasoning-gym question may have several right answers, which its scorer knows, so its rows are left out.
    """
    repeats: dict[tuple[str, str], dict[str, Row]] = {}
    for row in _with_a_grader(rows):
        if not row.grader.startswith(_OWN_SCORER):
            repeats.setdefault((normalize_question(row.question), row.grader), {}).setdefault(_value(row), row)
    several = [by_value for by_value in repeats.values() if len(by_value) > 1]
    tasks = [
        GradingTask(next(iter(by_value.values())).grader, "cluster", (list(by_value),), config.group_time_limit_seconds)
        for by_value in several
    ]
    contradicting = []
    for by_value, outcome in zip(several, _run(tasks, config), strict=True):
        numbers = range(len(by_value)) if outcome.value is None else outcome.value
        firsts: dict[int, Row] = {}
        for number, row in zip(numbers, by_value.values(), strict=True):
            firsts.setdefault(number, row)
        if len(firsts) > 1:
            contradicting.append(list(firsts.values()))
    return contradicting


def contradiction(rows: Sequence[Row]) -> Problem:
    """What is wrong with rows that `contradictions` gives, at the place of the first."""
    first, *others = rows
    elsewhere = ", ".join(f"{_label(row)!r:.80} in {row.location or row.source}" for row in others)
    reason = f"the question has the answer {_label(first)!r:.80} here and {elsewhere}: keep the right one"
    return first.location or RowLocation(first.source), reason


def _run(tasks: Sequence[GradingTask], config: GradingConfig) -> list[Outcome]:
    with contextlib.closing(worker_pool(config)) as pool:
        try:
            return pool.run(tasks)
        except GradingError as error:
            return [Outcome(failure=str(error))] * len(tasks)


def _reason(outcome: Outcome) -> str:
    """Why a label is of no use; empty where it is."""
    if outcome.timed_out:
        return f"to grade the label against itself takes {outcome.failure}"
    return " ".join(outcome.failure.removeprefix("ValueError: ").split())


def _past_options(row: Row) -> str:
    """Why a choice's letter is none of the question's options; empty where it is one, or no options are listed.

    Options are letters in brackets, or before a full stop, bracket or colon at a line's start. Questions may list them
    in other ways, so a letter that stands anywhere by itself is one too.
    """
    if row.grader != "choice" or row.answer is None:
        return ""
    letter = _value(row)
    options = {(bracketed or leading).upper() for bracketed, leading in _OPTION.findall(row.question)}
    if letter in options:
        return ""
    if len(letter) != 1 or not {"A", "B"} <= options or re.search(rf"\b{letter}\b", row.question):
        return ""
    return f"the label is {letter}, and the question's options end with {max(options)}"


def _with_a_grader(rows: Sequence[Row]) -> list[Row]:
    known = set()
    for name in {row.grader for row in rows}:
        with contextlib.suppress(ValueError):
            scorer(name)
            known.add(name)
    return [row for row in rows if row.grader in known]


def _label(row: Row) -> object:
    return row.answer and row.answer["answer"]


def _value(row: Row) -> str:
    """The label as text, alike for labels that are written differently and mean the same letter."""
    label = _label(row)
    if row.grader == "choice":
        with contextlib.suppress(ValueError):
            return gold_letter(label)
    return label.strip() if isinstance(label, str) else _text(label)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
