"""Reproduces the paper in miniature: from the warm start to tables and figures, by one command.

usage: python tools/reproduce.py DIRECTORY [--study methods] [--seeds 0,1,2,3,4] [--jobs N] [--gpus 0,1] [--resume]
       [--start key=value ...] [--loop key=value ...]

For each seed, one run makes the start (recipes/miniature/start.yaml). Each run of the study continues from it
(recipes/miniature/loop.yaml). `--resume` continues in a directory: finished runs are kept, others resume from their
newest checkpoint. Studies in one directory share runs. DIRECTORY gets STUDY.md, STUDY.json and figures/.
comparison/studies.py declares the studies.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from comparison.drawing import variant_panels
from comparison.intervals import Interval, crossed_interval
from comparison.runs import Piece, Slots, is_complete, train_all
from comparison.samples import grades_by_question, measure_matrix
from comparison.studies import STUDIES, Study
from make_miniature import QUESTIONS, write_miniature

from tempo_megatron.config import load_config
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.report.panels import Section
from tempo_megatron.report.png import write_figures

RECIPES = QUESTIONS.parent
REFUSED = 2
"""The exit code where nothing was started."""
START = "start"
Grades = dict[str, list[dict[str, list[float]]]]
"""Source of questions -> for each seed, the grades of a question's responses by prompt id."""
Runs = Mapping[str, Sequence[Path]]
"""Name -> the run of each seed."""


def pieces_of(
    directory: Path, study: Study, seeds: Sequence[int], start: Sequence[str], loop: Sequence[str]
) -> tuple[list[Piece], list[Piece]]:
    """Returns the runs that make the starts, and the study's runs, which need them.

    `start` and `loop` are overrides of the two recipes.
    """
    data = directory / "questions"
    model = f"model.hf_path={data / 'model'}"
    streams = [f"data.{name}=[{{path: {data}/{name}.jsonl}}]" for name in ("labeled", "unlabeled")]
    streams.append(f"data.held_out=[{{path: {data}/held_out.jsonl}}, {{path: {data}/familiar.jsonl}}]")
    examples = f"data.warm_start=[{{path: {data}/warm_start.jsonl}}]"
    last = load_config(RECIPES / "start.yaml", start).loop.iterations
    starts, runs = [], []
    for seed in seeds:
        run = directory / f"{START}-{seed}"
        common = (model, *streams, f"seed={seed}")
        starts.append(Piece(RECIPES / "start.yaml", run, (*common, examples, *start)))
        checkpoints = run / "checkpoints"
        converged = checkpoints / f"iteration-{last:06d}"
        for name, settings in study.runs.items():
            own = [text.replace("{data}", str(data)).replace("{start}", str(checkpoints)) for text in settings]
            overrides = (*common, f"policy.checkpoint={converged}", f"critic.checkpoint={converged}", *loop, *own)
            runs.append(Piece(RECIPES / "loop.yaml", directory / f"{name}-{seed}", overrides))
    return starts, runs


def grades_by_source(runs: Sequence[Path], evaluation: str) -> Grades:
    """Returns the grades of all seeds' `initial` or `final` evaluation by the file of the question."""
    grades: Grades = {}
    for number, run in enumerate(runs):
        for questions in grades_by_question(run, evaluation).values():
            for prompt, rows in questions.items():
                source = prompt.partition(".jsonl:")[0]
                seeds = grades.setdefault(source, [{} for _ in runs])
                seeds[number][prompt] = rows
    return grades


def compare(runs: Runs, reference: str, k: int) -> dict[str, Any]:
    """Returns name -> source -> measure -> kind -> mean of each seed, and the mean with its interval.

    The measures are avg@n, over all n responses to a question, and pass@k. The kinds are `value`, `gain` (the
    difference from the start) and `lead` (that of the reference from the run, where both have the source's questions).
    """
    initial = {name: grades_by_source(paths, "initial") for name, paths in runs.items()}
    final = {name: grades_by_source(paths, "final") for name, paths in runs.items()}
    results: dict[str, Any] = {name: {} for name in (START, *runs)}
    for name, sources in final.items():
        for source, grades in sources.items():
            for measure, samples in measures(grades, k).items():
                before, after = measure_matrix(initial[name][source], samples), measure_matrix(grades, samples)
                tables = {"value": after, "gain": after - before}
                if name == reference:
                    start = figures({"value": before}, START, source, measure)
                    results[START].setdefault(source, {})[measure] = start
                elif source in final[reference]:
                    tables["lead"] = measure_matrix(final[reference][source], samples) - after
                results[name].setdefault(source, {})[measure] = figures(tables, name, source, measure)
    return results


def measures(seeds: Sequence[dict[str, list[float]]], k: int) -> dict[str, int | None]:
    """Returns the names of both measures, each with its k; None stands for the mean over all responses."""
    samples = min(len(grades) for questions in seeds for grades in questions.values())
    return {f"avg@{samples}": None, f"pass@{k}": k}


def figures(tables: Mapping[str, np.ndarray], *names: str) -> dict[str, Any]:
    """Returns the mean of each seed and the interval of each table, float [seeds, questions].

    `names` seed the interval's resamples.
    """
    return {
        kind: {
            "seeds": table.mean(1).tolist(),
            **asdict(crossed_interval(table, seed=derive_seed("reproduce", kind, *names))),
        }
        for kind, table in tables.items()
    }


def summary_table(results: Mapping[str, Any]) -> str:
    """Returns the table of the paper: avg@n / pass@k, a column for each source of questions."""
    sources = list(dict.fromkeys(source for by_source in results.values() for source in by_source))
    lines = [f"| | {' | '.join(sources)} |", f"|---|{'---|' * len(sources)}"]
    for name, by_source in results.items():
        cells = [
            " / ".join(f"{100 * measure['value']['mean']:.1f}" for measure in by_source[source].values())
            if source in by_source
            else ""
            for source in sources
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def difference_table(results: Mapping[str, Any], reference: str) -> str:
    """Returns a row for each run, source and measure: gain over the start, the reference's lead, and every seed."""
    lines = [
        f"| run | questions | measure | gain | lead of {reference} | value of each seed |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_source in results.items():
        for source, by_measure in by_source.items():
            for measure, kinds in by_measure.items():
                cells = [interval_text(kinds.get("gain")), interval_text(kinds.get("lead"))]
                seeds = ", ".join(f"{100 * value:.1f}" for value in kinds["value"]["seeds"])
                lines.append(f"| {name} | {source} | {measure} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines) + "\n"


def interval_text(kind: Mapping[str, Any] | None) -> str:
    """Returns a difference in percentage points with its 95% interval, in bold where that excludes 0."""
    if kind is None:
        return ""
    interval = Interval(kind["mean"], kind["low"], kind["high"])
    if interval.low is None or interval.high is None:
        return f"{100 * interval.mean:+.1f}"
    text = f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    return f"**{text}**" if interval.excludes_zero else text


def draw(runs: Runs, k: int, directory: Path) -> list[Path]:
    """Writes the figures and returns their paths."""
    rollouts = "evaluation/unlabeled_rollouts"
    panels = [
        *variant_panels(runs, f"evaluation/unlabeled/avg@{k}", f"avg@{k} on unlabeled questions", share=True),
        *variant_panels(runs, f"evaluation/unlabeled/pass@{k}", f"pass@{k} on unlabeled questions", share=True),
        *variant_panels(runs, f"evaluation/held_out/avg@{k}", f"avg@{k} on held-out questions", share=True),
        *variant_panels(
            runs, f"{rollouts}/reward_auroc_within_prompts", "AUROC of the reward within prompts", share=True
        ),
    ]
    return write_figures([Section(directory.name, "", panels)], directory)


def write_results(directory: Path, name: str, study: Study, seeds: Sequence[int], k: int) -> str:
    """Writes the study's table, figures and numbers, and returns the tables."""
    runs = {run: [directory / f"{run}-{seed}" for seed in seeds] for run in study.runs}
    results = compare(runs, study.reference, k)
    text = f"# {study.question}\n\n{summary_table(results)}\n{difference_table(results, study.reference)}"
    (directory / f"{name}.md").write_text(text)
    (directory / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(runs, k, directory / "figures" / name)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds with commas between them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--gpus", default="", help="GPU numbers with commas: each run gets a free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between starts on a GPU")
    parser.add_argument("--resume", action="store_true", help="continue in a directory that has runs")
    parser.add_argument("--start", nargs="*", default=[], metavar="key=value", help="settings of the starts")
    parser.add_argument("--loop", nargs="*", default=[], metavar="key=value", help="settings of the study's runs")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="YAML file of the sets of questions")
    options = parser.parse_args()
    study, seeds = STUDIES[options.study], [int(seed) for seed in options.seeds.split(",")]
    directory = options.directory.absolute()
    if directory.exists() and not options.resume:
        print(f"{options.directory} exists; --resume continues it", file=sys.stderr)
        return REFUSED
    write_miniature(directory / "questions", questions=options.questions)
    slots = Slots(options.jobs, tuple(options.gpus.split(",")) if options.gpus else (), options.delay)
    starts, runs = pieces_of(directory, study, seeds, options.start, options.loop)
    for pieces in (starts, runs):
        remaining = sum(not is_complete(piece.directory) for piece in pieces)
        print(f"{len(pieces)} runs, {remaining} to train", flush=True)
        train_all(pieces, slots)
    k = load_config(RECIPES / "loop.yaml", options.loop).evaluation.k
    print(write_results(directory, options.study, study, seeds, k))
    return 0


if __name__ == "__main__":
    sys.exit(main())
