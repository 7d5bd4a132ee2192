"""Plots of a run, from its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_run(run_dir: Path) -> list[Path]:
    """Write plots/accuracy.png and plots/critic.png of a run directory; returns their paths."""
    import matplotlib

    matplotlib.use("agg")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluated = sorted({n for row in rows for n in row if n.startswith("evaluation/") and not n.endswith("_error")})
    critic = ["critic/auroc", "critic/auroc_within_prompts", "critic/brier"]
    directory = run_dir / "plots"
    directory.mkdir(exist_ok=True)
    tempo = [row for row in rows if row["stage"] == "tempo"]
    return [
        _lines(directory / "accuracy.png", tempo, evaluated, "accuracy"),
        _lines(directory / "critic.png", rows, critic, "critic on labelled rollouts, before training on them"),
    ]


def _lines(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str], title: str) -> Path:
    """One line a metric over iterations, those of the critic's start negative; rows that lack it are skipped."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name in names:
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        axes.plot([at for at, _ in points], [value for _, value in points], marker=".", label=name.partition("/")[2])
    axes.set_title(title)
    axes.set_xlabel("iteration (negative: the critic's start)")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
