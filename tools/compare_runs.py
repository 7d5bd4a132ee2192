"""Variants of a run against each other from one start, over seeds: runs, tables and figure in one command.

usage: python tools/compare_runs.py DIRECTORY [--variants methods] [--recipe recipes/demo.yaml] [--seeds 0,1,2]
       [--jobs 1] [--gpus 0,1] [--delay 0] [key=value ...]

For every seed one run makes the start (the recipe's stages and nothing after them), and every variant goes on from that
run's policy and critic. The same command again resumes what is not finished. DIRECTORY gets comparison.md,
comparison.json and comparison.png.

`--variants methods`: all train the policy on 256 rollouts an iteration. Those that compare a prompt's responses with
each other take 8 of 32 prompts, the others 2 of 128. TEMPO's critic learns from the recipe's labeled rollouts besides.
`--variants precisions`: training in bf16 and in FP8, with bf16 rollouts.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.metrics.bootstrap import confidence_interval
from tempo_megatron.metrics.pass_at_k import pass_at_k

K = 8
GROUPS = ("loop.unlabeled_prompts=32", "loop.samples_per_prompt=8")
DIFFERENCE = "generation/exp_log_prob_difference_mean"
ENDS = 10
"""iterations at either end that the table of log-prob differences averages"""

Variants = dict[str, tuple[str, ...]]
"""name -> settings"""
VARIANTS: dict[str, Variants] = {
    "methods": {
        "tempo": ("method=tempo",),
        "frozen_critic": ("method=frozen_critic",),
        "ttrl": ("method=ttrl", *GROUPS),
        "empo": ("method=empo", *GROUPS),
        "ppo": ("method=ppo", "loop.labeled_prompts=128"),
    },
    "precisions": {"bf16": ("model.fp8=none",), "fp8": ("model.fp8=tensorwise",)},
}


def train(recipe: Path, run: Path, overrides: Sequence[str], gpu: str | None) -> None:
    """A run to its end, on one GPU where it is named; one that has a summary is left as it is. Its output goes into its
    directory."""
    if (run / "summary.json").is_file():
        return
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tempo_megatron.cli", "train", str(recipe), f"run_dir={run}", *overrides]
    with (run / "output.log").open("a") as log:
        environment = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}; see {run / 'output.log'}")
    print(f"{run.name}: done", flush=True)


def compare(given: argparse.Namespace, variants: Variants, seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """All runs, `jobs` at a time, spread evenly over the GPUs: the starts, then the variants. Raises ExceptionGroup
    once all have ended."""
    gpus: list[str | None] = list(given.gpus.split(",")) if given.gpus else [None]
    begins = {gpu: threading.Lock() for gpu in gpus}
    free: queue.Queue[str | None] = queue.Queue()
    for number in range(given.jobs):
        free.put(gpus[number % len(gpus)])

    def run(name: str, seed: int, settings: Sequence[str]) -> None:
        gpu = free.get()
        try:
            with begins[gpu]:
                time.sleep(given.delay)
            train(given.recipe, given.directory / f"{name}-{seed}", [*settings, f"seed={seed}"], gpu)
        finally:
            free.put(gpu)

    def after_start(seed: int) -> list[str]:
        begun = given.directory / f"start-{seed}" / "checkpoints" / "iteration-000000"
        return [
            f"policy.checkpoint={begun}",
            f"critic.checkpoint={begun}",
            "stages.warm_start.steps=0",
            "stages.critic_start.iterations=0",
        ]

    made = [(name, seed, settings) for seed in seeds for name, settings in variants.items()]
    with ThreadPoolExecutor(given.jobs) as pool:
        starts = [*overrides, "loop.iterations=0"]
        finish([pool.submit(run, "start", seed, starts) for seed in seeds])
        finish(
            [pool.submit(run, name, seed, [*settings, *overrides, *after_start(seed)]) for name, seed, settings in made]
        )


def finish(runs: Sequence[Future[None]]) -> None:
    """Wait for all of them. Raises ExceptionGroup."""
    failed = [error for run in runs if isinstance(error := run.exception(), Exception)]
    if failed:
        raise ExceptionGroup("some runs failed; the same command tries them again", failed)


def questions(run: Path, at: str) -> dict[str, dict[str, list[float]]]:
    """Grades of the first (`initial`) or last (`final`) evaluation: set -> question -> grade of each sample."""
    files = sorted((run / "samples").glob("iteration-*.jsonl"))
    rows = [json.loads(line) for line in files[0 if at == "initial" else -1].read_text().splitlines()]
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["set"], {}).setdefault(row["prompt"], []).append(row["correct"])
    return found


def figures(runs: Sequence[Path], at: str, of: str) -> dict[str, tuple[float, float, float]]:
    """avg@8 and pass@8 with 95% intervals over questions, each question averaged over the runs that have it."""
    by_question: dict[str, list[list[float]]] = {}
    for run in runs:
        for prompt, grades in questions(run, at)[of].items():
            by_question.setdefault(prompt, []).append(grades)
    measures = {
        f"avg@{K}": lambda grades: sum(grades) / len(grades),
        f"pass@{K}": lambda grades: pass_at_k(round(sum(grades)), len(grades), K),
    }
    found = {}
    for name, measure in measures.items():
        values = [statistics.mean(map(measure, rows)) for rows in by_question.values()]
        interval = confidence_interval(values, seed=derive_seed("comparison", name)) or (values[0], values[0])
        found[name] = (statistics.mean(values), *interval)
    return found


def table(directory: Path, variants: Variants, seeds: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Rows of variant and set, the mean over seeds with its interval, and each seed's avg@8."""
    lines = [
        f"| variant | set | avg@{K} | pass@{K} | avg@{K} of seeds {', '.join(map(str, seeds))} |",
        "|---|---|---|---|---|",
    ]
    results: dict[str, Any] = {}
    for of in ("unlabeled", "held_out"):
        for name in ("start", *variants):
            runs = [directory / f"{name}-{seed}" for seed in seeds]
            at = "initial" if name == "start" else "final"
            found = figures(runs, at, of)
            alone = [figures([run], at, of)[f"avg@{K}"][0] for run in runs]
            results[f"{name}/{of}"] = {**found, "seeds": alone}
            cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in found.values()]
            lines.append(f"| {name} | {of} | {' | '.join(cells)} | {', '.join(f'{value:.3f}' for value in alone)} |")
    return "\n".join(lines) + "\n", results


def curve(run: Path, key: str) -> list[tuple[int, float]]:
    """(iteration, value) of a metric of a run, where it was logged."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["iteration"], row[key]) for row in rows if key in row]


def trends(directory: Path, variants: Variants, seeds: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Rows of variant and seed: mean of exp|log-prob of the generator - of the trainer| over the first and the last
    iterations, and what a line through all of them rises by in ten."""
    lines = [
        f"| variant | seed | mean of exp(log-prob difference), first {ENDS} | last {ENDS} | rise in 10 iterations |",
        "|---|---|---|---|---|",
    ]
    results: dict[str, Any] = {}
    for name in variants:
        for seed in seeds:
            points = curve(directory / f"{name}-{seed}", DIFFERENCE)
            values = [value for _, value in points]
            first, last = statistics.mean(values[:ENDS]), statistics.mean(values[-ENDS:])
            rise = 10 * statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else 0.0
            results[f"{name}/log_prob_difference/{seed}"] = {"first": first, "last": last, "rise": rise}
            lines.append(f"| {name} | {seed} | {first:.5f} | {last:.5f} | {rise:+.5f} |")
    return "\n".join(lines) + "\n", results


def draw(path: Path, directory: Path, variants: Variants, seeds: Sequence[int], results: dict[str, Any]) -> None:
    """Ends with their intervals, learning curves on unlabeled questions, and log-prob differences, a line a seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (ends, curves, differences) = pyplot.subplots(1, 3, figsize=(19, 5), layout="constrained")
    names = ["start", *variants]
    for offset, (measure, marker) in enumerate(((f"avg@{K}", "o"), (f"pass@{K}", "s"))):
        values = [results[f"{name}/unlabeled"][measure] for name in names]
        means = [mean for mean, _, _ in values]
        reach = [[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]]
        at = [number + 0.2 * offset for number in range(len(names))]
        ends.errorbar(at, means, yerr=reach, fmt=marker, capsize=4, label=measure)
    ends.set_xticks(range(len(names)), names, rotation=20)
    ends.set_title(f"unlabeled questions, mean of {len(seeds)} seeds, 95% over questions")
    ends.set_ylim(0, 1.02)
    ends.grid(alpha=0.3)
    ends.legend()
    key = f"evaluation/unlabeled/avg@{K}"
    for number, name in enumerate(variants):
        for seed in seeds:
            look: dict[str, Any] = {"color": f"C{number}", "alpha": 0.8, "label": name if seed == seeds[0] else None}
            for axes, of in ((curves, key), (differences, DIFFERENCE)):
                axes.plot(*zip(*curve(directory / f"{name}-{seed}", of), strict=True), marker=".", **look)
    curves.set_title(f"avg@{K} on unlabeled questions")
    curves.set_xlabel("iteration")
    curves.set_ylim(0, 1.02)
    curves.grid(alpha=0.3)
    curves.legend()
    differences.set_title("mean of exp|log-prob of generator - of trainer|")
    differences.set_xlabel("iteration")
    differences.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument("--variants", choices=VARIANTS, default="methods")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--gpus", default="", help="numbers with commas: each run is given one that is free")
    parser.add_argument(
        "--delay",
        type=float,
        default=0.0,
        help="seconds between starts on a GPU: engines that share it measure it then, and fail where another ends",
    )
    given, overrides = parser.parse_known_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    variants = VARIANTS[given.variants]
    compare(given, variants, seeds, overrides)
    text, results = table(given.directory, variants, seeds)
    rises, differences = trends(given.directory, variants, seeds)
    (given.directory / "comparison.md").write_text(f"{text}\n{rises}")
    (given.directory / "comparison.json").write_text(json.dumps(results | differences, indent=2) + "\n")
    draw(given.directory / "comparison.png", given.directory, variants, seeds, results)
    print(f"{text}\n{rises}")


if __name__ == "__main__":
    main()
