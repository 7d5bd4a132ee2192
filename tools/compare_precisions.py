"""Compares training in bf16 with training in FP8, with bf16 rollouts, from the same start over seeds.

usage: python tools/compare_precisions.py DIRECTORY [--recipe recipes/demo.yaml] [--seeds 0,1,2]
       [--jobs 1] [--gpus 0,1] [--delay 0] [key=value ...]

For each seed, one run makes the start: the recipe's stages before the loop. Each precision continues from that run's
policy and critic. The same command resumes unfinished runs. DIRECTORY gets comparison.md, comparison.json and
figures/. `tools/reproduce.py` compares methods.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comparison.drawing import mean_panels
from comparison.runs import Piece, Slots, train_all
from comparison.samples import curve, evaluations, grades_by_question, mean_grade, pass_rate

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.metrics.bootstrap import confidence_interval
from tempo_megatron.report.panels import Section
from tempo_megatron.report.png import write_figures

K = 8
DIFFERENCE = "generation/exp_log_prob_difference_mean"
AVERAGED_ITERATIONS = 10
"""Number of first and of last iterations that the table of log-prob differences averages."""

Precisions = dict[str, tuple[str, ...]]
"""Maps a precision's name to its settings."""
PRECISIONS: Precisions = {"bf16": ("model.fp8=none",), "fp8": ("model.fp8=tensorwise",)}


def compare(
    options: argparse.Namespace, precisions: Precisions, seeds: Sequence[int], overrides: Sequence[str]
) -> None:
    """Makes all runs, first the starts and then the precisions. Raises ExceptionGroup once all have ended."""
    gpus = tuple(options.gpus.split(",")) if options.gpus else ()
    slots = Slots(options.jobs, gpus, options.delay)

    def piece(name: str, seed: int, settings: Sequence[str]) -> Piece:
        return Piece(options.recipe, options.directory / f"{name}-{seed}", (*settings, f"seed={seed}"))

    def after_start(seed: int) -> list[str]:
        start = options.directory / f"start-{seed}" / "checkpoints" / "iteration-000000"
        return [
            f"policy.checkpoint={start}",
            f"critic.checkpoint={start}",
            "stages.warm_start.steps=0",
            "stages.critic_start.iterations=0",
        ]

    train_all([piece("start", seed, [*overrides, "loop.iterations=0"]) for seed in seeds], slots)
    precision_runs = [(name, seed, settings) for seed in seeds for name, settings in precisions.items()]
    train_all(
        [piece(name, seed, [*settings, *overrides, *after_start(seed)]) for name, seed, settings in precision_runs],
        slots,
    )


def summary(runs: Sequence[Path], evaluation: int, question_set: str) -> dict[str, tuple[float, float, float]]:
    """Returns avg@8 and pass@8 as (mean, low, high) with 95% intervals over questions.

    `evaluation` is an index of the run's evaluations, such as -1 for the last. Each question is averaged over the runs
    that have it.
    """
    by_question: dict[str, list[list[float]]] = {}
    for run in runs:
        file = list(evaluations(run).values())[evaluation]
        for prompt, grades in grades_by_question(file)[question_set].items():
            by_question.setdefault(prompt, []).append(grades)
    measures = {
        f"avg@{K}": mean_grade,
        f"pass@{K}": partial(pass_rate, k=K),
    }
    summary_by_measure = {}
    for name, measure in measures.items():
        values = [statistics.mean(map(measure, rows)) for rows in by_question.values()]
        interval = confidence_interval(values, seed=derive_seed("comparison", name)) or (values[0], values[0])
        summary_by_measure[name] = (statistics.mean(values), *interval)
    return summary_by_measure


def table(directory: Path, precisions: Precisions, seeds: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Returns a row for each precision and set: means over seeds with intervals, and each seed's avg@8."""
    lines = [
        f"| precision | set | avg@{K} | pass@{K} | avg@{K} of seeds {', '.join(map(str, seeds))} |",
        "|---|---|---|---|---|",
    ]
    results: dict[str, Any] = {}
    for question_set in ("unlabeled", "held_out"):
        for name in ("start", *precisions):
            runs = [directory / f"{name}-{seed}" for seed in seeds]
            evaluation = 0 if name == "start" else -1
            measures = summary(runs, evaluation, question_set)
            by_seed = [summary([run], evaluation, question_set)[f"avg@{K}"][0] for run in runs]
            results[f"{name}/{question_set}"] = {**measures, "seeds": by_seed}
            cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in measures.values()]
            seed_cell = ", ".join(f"{value:.3f}" for value in by_seed)
            lines.append(f"| {name} | {question_set} | {' | '.join(cells)} | {seed_cell} |")
    return "\n".join(lines) + "\n", results


def trends(directory: Path, precisions: Precisions, seeds: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Returns a row for each precision and seed about exp|log-prob of the generator - log-prob of the trainer|.

    A row has the mean over the first and over the last iterations, and the rise of a fitted line in ten iterations.
    """
    lines = [
        f"| precision | seed | mean of exp(log-prob difference), first {AVERAGED_ITERATIONS} "
        f"| last {AVERAGED_ITERATIONS} | rise in 10 iterations |",
        "|---|---|---|---|---|",
    ]
    results: dict[str, Any] = {}
    for name in precisions:
        for seed in seeds:
            points = curve(directory / f"{name}-{seed}", DIFFERENCE)
            values = [value for _, value in points]
            first, last = statistics.mean(values[:AVERAGED_ITERATIONS]), statistics.mean(values[-AVERAGED_ITERATIONS:])
            rise = 10 * statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else 0.0
            results[f"{name}/log_prob_difference/{seed}"] = {"first": first, "last": last, "rise": rise}
            lines.append(f"| {name} | {seed} | {first:.5f} | {last:.5f} | {rise:+.5f} |")
    return "\n".join(lines) + "\n", results


def curves(directory: Path, precisions: Precisions, seeds: Sequence[int]) -> Section:
    """Returns panels of avg@8 on unlabeled questions and of log-prob differences: a line for each precision."""
    runs = {name: [directory / f"{name}-{seed}" for seed in seeds] for name in precisions}
    accuracy = mean_panels(runs, f"evaluation/unlabeled/avg@{K}", f"avg@{K} on unlabeled questions", share=True)
    differences = mean_panels(runs, DIFFERENCE, "mean of exp|log-prob of generator - of trainer|", share=False)
    return Section("comparison", "", [*accuracy, *differences])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument("--seeds", default="0,1,2", help="seeds with commas between them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--gpus", default="", help="GPU numbers with commas: each run gets a free one")
    parser.add_argument(
        "--delay",
        type=float,
        default=0.0,
        help="seconds between starts on a GPU; engines that share it measure its memory, and fail if another ends then",
    )
    options, overrides = parser.parse_known_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    compare(options, PRECISIONS, seeds, overrides)
    text, results = table(options.directory, PRECISIONS, seeds)
    rises, differences = trends(options.directory, PRECISIONS, seeds)
    (options.directory / "comparison.md").write_text(f"{text}\n{rises}")
    (options.directory / "comparison.json").write_text(json.dumps(results | differences, indent=2) + "\n")
    write_figures([curves(options.directory, PRECISIONS, seeds)], options.directory / "figures")
    print(f"{text}\n{rises}")


if __name__ == "__main__":
    main()
