"""Reads what runs have logged: evaluated responses with their grades, and metrics over iterations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tempo_megatron.metrics.pass_at_k import pass_at_k

Grades = dict[str, dict[str, list[float]]]
"""Set -> prompt id -> grade of each response."""
Rows = list[dict[str, Any]]
"""The records of an evaluation's responses, or the lines of a log."""


def json_lines(file: Path) -> Rows:
    """Returns the records of a JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def evaluations(run: Path) -> dict[int, Path]:
    """Returns the file of responses of each evaluation of a run, by iteration in ascending order."""
    files = sorted((run / "samples").glob("iteration-*.jsonl"))
    return {int(file.stem.removeprefix("iteration-")): file for file in files}


def grades_by_question(file: Path) -> Grades:
    """Returns the grades of an evaluation's responses."""
    grades: Grades = {}
    for row in json_lines(file):
        grades.setdefault(row["set"], {}).setdefault(row["prompt"], []).append(row["correct"])
    return grades


def mean_grade(grades: Sequence[float]) -> float:
    """Returns avg@n of a question with n responses."""
    return sum(grades) / len(grades)


def pass_rate(grades: Sequence[float], k: int) -> float:
    """Returns pass@k of a question."""
    return pass_at_k(round(sum(grades)), len(grades), k)


def measure_matrix(questions: Sequence[dict[str, list[float]]], k: int | None) -> np.ndarray:
    """Returns avg@n, or pass@k with `k`, as float [seeds, questions]. `questions` has a seed's grades by prompt id.

    Raises ValueError where seeds have different questions.
    """
    ids = sorted(questions[0])
    if any(sorted(grades) != ids for grades in questions):
        raise ValueError("the runs of these seeds have different questions")
    rows = [
        [mean_grade(grades[id_]) if k is None else pass_rate(grades[id_], k) for id_ in ids] for grades in questions
    ]
    return np.asarray(rows, dtype=float)


def curve(run: Path, key: str) -> list[tuple[int, float]]:
    """Returns (iteration, value) of a run's metric for each iteration that logged it."""
    return [(row["iteration"], row[key]) for row in json_lines(run / "metrics.jsonl") if key in row]
