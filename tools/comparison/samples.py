"""Reads what runs have logged: the grades of evaluated responses, and metrics over iterations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tempo_megatron.metrics.pass_at_k import pass_at_k

Grades = dict[str, dict[str, list[float]]]
"""Set -> prompt id -> grade of each response."""


def grades_by_question(run: Path, evaluation: str) -> Grades:
    """Returns the grades of the `initial` or `final` evaluation of a run."""
    files = sorted((run / "samples").glob("iteration-*.jsonl"))
    rows = [json.loads(line) for line in files[0 if evaluation == "initial" else -1].read_text().splitlines()]
    grades: Grades = {}
    for row in rows:
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
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["iteration"], row[key]) for row in rows if key in row]
