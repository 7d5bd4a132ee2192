"""Writes run directories as finished runs leave them, for tests of the tools that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_responses(run: Path, iteration: int, grades: Mapping[str, Sequence[int]]) -> None:
    """Write an evaluation's responses. `grades` has those of each question, `SOURCE.jsonl:ID`.

    The right responses to a question are one cluster, and each wrong one is a cluster of its own.
    """
    clusters = {
        prompt: [0 if grade else number for number, grade in enumerate(row, 1)] for prompt, row in grades.items()
    }
    write_clusters(
        run, iteration, {prompt: [*zip(clusters[prompt], row, strict=True)] for prompt, row in grades.items()}
    )


def write_clusters(run: Path, iteration: int, responses: Mapping[str, Sequence[tuple[int | None, int]]]) -> None:
    """Write an evaluation's responses. `responses` has cluster and grade of each response to a question."""
    (run / "samples").mkdir(parents=True, exist_ok=True)
    rows = [
        {"set": prompt.partition(".")[0], "prompt": prompt, "cluster": cluster, "correct": float(grade)}
        for prompt, row in responses.items()
        for cluster, grade in row
    ]
    write_lines(run / "samples" / f"iteration-{iteration:06d}.jsonl", rows)


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def selection(iteration: int, candidates: Sequence[int], best: int) -> dict[str, Any]:
    """Return a log line at which a run selects a checkpoint."""
    return {
        "stage": "train",
        "iteration": iteration,
        "selection/candidates": [{"iteration": candidate, "accuracy": 0.5} for candidate in candidates],
        "selection/best": best,
    }
