"""Plots of a run, from its metrics.jsonl.

usage: python -m tempo_megatron.metrics.plots RUN_DIR
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LIMIT_SECONDS = 300.0
"""for matplotlib's imports and four figures, which take seconds: a busy machine may need minutes"""
_DIVERSITY = ("distinct_answers", "distinct_4grams", "truncated")
_CRITIC = ("critic/auroc", "critic/auroc_within_prompts", "critic/brier")


def draw_apart(run_dir: Path) -> str:
    """Draw the plots of a run in a process of their own; returns a warning, empty where all went well.

    The run has its result: an error, an end by a signal and a time limit that is exceeded must not be the run's own.
    """
    command = [sys.executable, "-X", "faulthandler", "-m", __name__, str(run_dir)]
    warning = f"warning: {run_dir} lacks plots, which `python -m {__name__} {run_dir}` draws"
    try:
        drawn = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{warning}: it took more than {_LIMIT_SECONDS:.0f} s"
    except OSError as error:
        return f"{warning}: it did not start: {error}"
    if not drawn.returncode:
        return ""
    ended = f"signal {-drawn.returncode}" if drawn.returncode < 0 else f"exit code {drawn.returncode}"
    return f"{warning}: it ended with {ended}\n{drawn.stderr}".rstrip()


def plot_run(run_dir: Path) -> list[Path]:
    """Write accuracy.png, diversity.png, reward.png and critic.png into plots/ of a run directory; returns their
    paths. A figure that the run never had has no line."""
    import matplotlib

    matplotlib.use("agg")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    directory = run_dir / "plots"
    directory.mkdir(exist_ok=True)
    tempo = [row for row in rows if row["stage"] == "train"]
    # Of whole sets: the figures of a set's sources have a name in between.
    found = sorted({name for row in tempo for name in row if name.startswith("evaluation/") and name.count("/") == 2})
    accuracy = [name for name in found if ("@" in name or name.endswith("/avg")) and not name.endswith("_error")]
    diversity = [name for name in found if name.endswith(_DIVERSITY)]
    reward = [name for name in found if "/reward_" in name]
    return [
        _lines(directory / "accuracy.png", tempo, accuracy, "accuracy"),
        _lines(directory / "diversity.png", tempo, diversity, "diversity and truncation of evaluated responses"),
        _lines(directory / "reward.png", tempo, reward, "reward of unlabeled rollouts against the truth", None),
        _lines(directory / "critic.png", rows, _CRITIC, "critic on labeled rollouts, before training on them"),
    ]


def _lines(
    path: Path,
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    title: str,
    highest: float | None = 1.02,
) -> Path:
    """One line a metric over iterations, those of the critic's start negative; rows that lack it are skipped."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name in names:
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        axes.plot([at for at, _ in points], [value for _, value in points], marker=".", label=name.partition("/")[2])
    axes.set_title(title)
    axes.set_xlabel("iteration (negative: the critic's start)")
    if highest:
        axes.set_ylim(0, highest)
    axes.grid(alpha=0.3)
    if names:
        axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    plot_run(Path(sys.argv[1]))
