"""Token samples of a run: responses whose tokens the page colors by what critic, trainer and generator say of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tempo_megatron.report.reading import Row, RunRecord, iteration_of, json_rows
from tempo_megatron.report.words import set_name

_BUDGET_BYTES = 5_000_000
"""The bytes of samples in a page. Evaluations between the first and the last are left out beyond it, then questions."""
_COLUMNS = (
    "sample",
    "correct",
    "finish_reason",
    "tokens",
    "first",
    "left_out",
    "texts",
    "value_before",
    "values",
    "advantages",
    "log_probs",
    "differences",
)
_SETS = ("unlabeled", "held_out", "labeled")


@dataclass(frozen=True)
class TokenQuestion:
    """A question with the responses that were recorded token by token."""

    question_set: str
    id: str
    text: str
    responses: list[dict[str, Any]] = field(default_factory=list)
    """By iteration, then by sample: the record's columns, and its `iteration`."""


@dataclass(frozen=True)
class TokenSamples:
    """What the page shows token by token."""

    questions: list[TokenQuestion]
    """Unlabeled ones first, labeled ones last; within a set those with more responses first."""
    evaluations_left_out: int
    """The number of evaluations that are left out, to keep the page light."""
    questions_left_out: int
    """The number of questions that are left out, where fewer evaluations were not enough."""


def token_samples(record: RunRecord) -> TokenSamples:
    """Return the token samples of a run, within a budget of bytes."""
    paths = sorted((record.directory / "token_samples").glob("*-*.jsonl"))
    if record.rows:  # a run that resumes from an earlier checkpoint leaves files of the iterations that it repeats
        paths = [path for path in paths if iteration_of(path) <= record.iteration]
    by_iteration: dict[int, list[Path]] = {}
    for path in sorted(paths, key=iteration_of):
        by_iteration.setdefault(iteration_of(path), []).append(path)
    shown = _affordable({iteration: sum(map(_size, group)) for iteration, group in by_iteration.items()})
    questions: dict[tuple[str, str], TokenQuestion] = {}
    for iteration in shown:
        for path in by_iteration[iteration]:
            for row in json_rows(path, record.unreadable):
                _add(questions, row, iteration)
    ordered = sorted(questions.values(), key=lambda each: (_order(each.question_set), -len(each.responses)))
    light = _light(ordered)
    return TokenSamples(light, len(by_iteration) - len(shown), len(ordered) - len(light))


def _add(questions: dict[tuple[str, str], TokenQuestion], row: Row, iteration: int) -> None:
    """Add a record to its question."""
    key = row["set"], row["prompt"]
    question = questions.setdefault(key, TokenQuestion(set_name(row["set"]), row["prompt"], row["question"]))
    question.responses.append({"iteration": iteration} | {name: row.get(name) for name in _COLUMNS})


def _affordable(sizes: dict[int, int]) -> Collection[int]:
    """Return the iterations to show: all, or every second, fourth, ... and the last, until their sizes fit."""
    shown = list(sizes)
    while sum(sizes[iteration] for iteration in shown) > _BUDGET_BYTES and len(shown) > 2:
        shown = sorted({*shown[::2], shown[-1]}) if len(shown) > 3 else [shown[0], shown[-1]]
    return shown


def _light(questions: Sequence[TokenQuestion]) -> list[TokenQuestion]:
    """Return the questions whose JSON fits into the budget, and at least one. The last ones of each set go first."""
    places: Counter[str] = Counter()
    by_place = []
    for index, question in enumerate(questions):
        by_place.append((places[question.question_set], index))
        places[question.question_set] += 1
    shown: list[int] = []
    size = 0
    for _, index in sorted(by_place):
        size += len(json.dumps(asdict(questions[index]), ensure_ascii=False).encode(errors="replace"))
        if shown and size > _BUDGET_BYTES:
            break
        shown.append(index)
    return [questions[index] for index in sorted(shown)]


def _size(path: Path) -> int:
    return path.stat().st_size


def _order(question_set: str) -> int:
    names = [set_name(name) for name in _SETS]
    return names.index(question_set) if question_set in names else len(names)
