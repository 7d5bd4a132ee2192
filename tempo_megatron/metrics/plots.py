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
"""The plots may take this long. They take seconds, but a busy machine may need minutes."""
_DIVERSITY = ("distinct_answers", "distinct_4grams", "truncated")
_CRITIC = ("critic/auroc", "critic/auroc_within_prompts", "critic/brier")


def draw_in_subprocess(run_dir: Path) -> str:
    """Draws the plots of a run in a process of their own and returns a warning, empty on success.

    By then the run has its result: an error, a signal or a timeout of the plots must not fail the run.
    """
    command = [sys.executable, "-X", "faulthandler", "-m", __name__, str(run_dir)]
    warning = f"{run_dir} lacks plots, which `python -m {__name__} {run_dir}` draws"
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{warning}: it took more than {_LIMIT_SECONDS:.0f} s"
    except OSError as error:
        return f"{warning}: it did not start: {error}"
    if not process.returncode:
        return ""
    end = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return f"{warning}: it ended with {end}\n{process.stderr}".rstrip()


def plot_run(run_dir: Path) -> list[Path]:
    """Writes accuracy.png, diversity.png, reward.png and critic.png into plots/ of a run directory and returns their
    paths. A metric that the run never logged has no line."""
    import matplotlib

    matplotlib.use("agg")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    directory = run_dir / "plots"
    directory.mkdir(exist_ok=True)
    iterations = [row for row in rows if row["stage"] == "train"]
    # evaluation/SET/METRIC is a metric of a whole set; those of its sources have a source's name in between.
    names = sorted({name for row in iterations for name in row if _is_of_whole_set(name)})
    accuracy = [name for name in names if ("@" in name or name.endswith("/avg")) and not name.endswith("_error")]
    diversity = [name for name in names if name.endswith(_DIVERSITY)]
    reward = [name for name in names if "/reward_" in name]
    return [
        _plot(directory / "accuracy.png", iterations, accuracy, "accuracy"),
        _plot(directory / "diversity.png", iterations, diversity, "diversity and truncation of evaluated responses"),
        _plot(directory / "reward.png", iterations, reward, "reward of unlabeled rollouts against the truth", None),
        _plot(directory / "critic.png", rows, _CRITIC, "critic on labeled rollouts, before training on them"),
    ]


def _is_of_whole_set(name: str) -> bool:
    return name.startswith("evaluation/") and name.count("/") == 2


def _plot(
    path: Path,
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    title: str,
    highest: float | None = 1.02,
) -> Path:
    """Plots one line per metric over iterations; those of the critic's start are negative. Rows without the metric are
    skipped."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name in names:
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        axes.plot(
            [iteration for iteration, _ in points],
            [value for _, value in points],
            marker=".",
            label=name.partition("/")[2],
        )
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
