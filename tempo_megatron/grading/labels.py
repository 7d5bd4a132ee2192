"""Checks labels before a run or an evaluation starts: each must be graded right against itself."""

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
from tempo_megatron.grading.graders import grader_functions
from tempo_megatron.grading.pool import GradingTask, Outcome
from tempo_megatron.grading.rollout_grader import worker_pool

_OPTION = re.compile(r"(?<!\S)\(([A-Za-z])\)|^[ \t]*([A-Za-z])[.):]\s", re.MULTILINE)
_REASONING_GYM = "reasoning_gym:"
_DEFAULTS = GradingConfig()


def label_problems(rows: Sequence[Row], config: GradingConfig = _DEFAULTS) -> list[str]:
    """Returns a line for each label that no response can get right and each question that repeats with another answer.

    All `rows` have an answer and a place. Rows whose grader cannot be loaded are skipped, because
    `rollout_grader.grading_problems` lists them.
    """
    problems = unanswerable(rows, config)
    unanswerable_places = {place for place, _ in problems}
    answerable = [row for row in rows if row.location not in unanswerable_places]
    return format_problems([*problems, *map(contradiction, contradictions(answerable, config))])


def problems_of_files(config: Config) -> list[str]:
    """Returns what is wrong with a recipe's data files and their labels, one line each. It needs no tokenizer."""
    return [
        *data_file_problems(config.data),
        *label_problems(read_answered_rows(config.data.sources()), config.grading),
    ]


def unanswerable(rows: Sequence[Row], config: GradingConfig = _DEFAULTS) -> list[Problem]:
    """Returns the labels that no response can get right, or that take longer to grade than the time limit."""
    checked = _with_loadable_grader(rows)
    # Thousands of questions share few answers, so each distinct answer is graded once.
    distinct = {(row.grader, _as_json(row.answer)): row for row in checked}
    tasks = [
        GradingTask(row.grader, "check_label", (row.answer,), config.time_limit_seconds) for row in distinct.values()
    ]
    reasons = dict(zip(distinct, map(_failure_reason, _run(tasks, config)), strict=True))
    row_reasons = [(row, reasons[row.grader, _as_json(row.answer)] or _missing_option_reason(row)) for row in checked]
    return [
        (row.location or RowLocation(row.source), f"grader {row.grader}: {reason}")
        for row, reason in row_reasons
        if reason
    ]


def contradictions(rows: Sequence[Row], config: GradingConfig = _DEFAULTS) -> list[list[Row]]:
    """Returns a list for each question and grader whose labels differ in value, with the first row of each value.

    Rows of reasoning-gym tasks are skipped: a question may have several right answers, which the task's scorer knows.
    """
    repeats: dict[tuple[str, str], dict[str, Row]] = {}
    for row in _with_loadable_grader(rows):
        if not row.grader.startswith(_REASONING_GYM):
            repeats.setdefault((normalize_question(row.question), row.grader), {}).setdefault(_label_text(row), row)
    conflicting = [by_value for by_value in repeats.values() if len(by_value) > 1]
    tasks = [
        GradingTask(next(iter(by_value.values())).grader, "cluster", (list(by_value),), config.group_time_limit_seconds)
        for by_value in conflicting
    ]
    contradicting: list[list[Row]] = []
    for by_value, outcome in zip(conflicting, _run(tasks, config), strict=True):
        numbers = range(len(by_value)) if outcome.value is None else outcome.value
        first_rows: dict[int, Row] = {}
        for number, row in zip(numbers, by_value.values(), strict=True):
            first_rows.setdefault(number, row)
        if len(first_rows) > 1:
            contradicting.append(list(first_rows.values()))
    return contradicting


def contradiction(rows: Sequence[Row]) -> Problem:
    """Returns the problem of one list that `contradictions` returns, at the place of its first row."""
    first, *others = rows
    elsewhere = ", ".join(f"{_label(row)!r:.80} in {row.location or row.source}" for row in others)
    reason = f"the question has the answer {_label(first)!r:.80} here and {elsewhere}: keep the right one"
    return first.location or RowLocation(first.source), reason


def _run(tasks: Sequence[GradingTask], config: GradingConfig) -> list[Outcome]:
    """Returns the outcome of each task. If grading itself fails, each outcome has that failure."""
    with contextlib.closing(worker_pool(config)) as pool:
        try:
            return pool.run(tasks)
        except GradingError as error:
            return [Outcome(failure=str(error))] * len(tasks)


def _failure_reason(outcome: Outcome) -> str:
    """Returns why a label cannot be used; "" if it can."""
    if outcome.timed_out:
        return f"to grade the label against itself takes {outcome.failure}"
    return " ".join(outcome.failure.removeprefix("ValueError: ").split())


def _missing_option_reason(row: Row) -> str:
    """Returns why a choice's letter is none of the question's options; "" if it is one or the question lists none.

    Options are letters in brackets, or letters before a full stop, bracket or colon at the start of a line. Questions
    may list options in other ways, so any letter that stands alone counts too.
    """
    if row.grader != "choice" or row.answer is None:
        return ""
    letter = _label_text(row)
    options = {(bracketed or leading).upper() for bracketed, leading in _OPTION.findall(row.question)}
    if letter in options:
        return ""
    if len(letter) != 1 or not {"A", "B"} <= options or re.search(rf"\b{letter}\b", row.question):
        return ""
    return f"the label is {letter}, and the question's options end with {max(options)}"


def _with_loadable_grader(rows: Sequence[Row]) -> list[Row]:
    loadable = set()
    for name in {row.grader for row in rows}:
        with contextlib.suppress(ValueError):
            grader_functions(name)
            loadable.add(name)
    return [row for row in rows if row.grader in loadable]


def _label(row: Row) -> object:
    return row.answer and row.answer["answer"]


def _label_text(row: Row) -> str:
    """Returns the label as text. Different notations of the same letter give the same text."""
    label = _label(row)
    if row.grader == "choice":
        with contextlib.suppress(ValueError):
            return gold_letter(label)
    return label.strip() if isinstance(label, str) else _as_json(label)


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
