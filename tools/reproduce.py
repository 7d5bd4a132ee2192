"""Reproduces the paper in miniature: from the warm start to tables and figures, by one command.

usage: python tools/reproduce.py DIRECTORY [--study methods,anchors] [--seeds 5,6,7,8,9] [--jobs N] [--gpus 0,1]
       [--resume] [--recipes FOLDER] [--start key=value ...] [--loop key=value ...]
       python tools/reproduce.py DIRECTORY [--study methods,anchors] [--seeds 5,6,7,8,9] --against OTHER

FOLDER has the recipes of a size: recipes/miniature, the default, or recipes/miniature/large. For each seed, one run
makes the start (start.yaml). Each run of a study continues from it (loop.yaml). `--resume` continues in a directory:
finished runs are kept, others resume from their newest checkpoint. Studies in one directory share runs. DIRECTORY gets
STUDY.md, STUDY.json and figures/STUDY/. comparison/studies.py declares the studies. `--against` trains nothing: it
compares the metrics of finished runs with those of another directory, such as a fresh clone's, bit for bit.

If a run fails, the others go on, and the exit code is 1. A study gets its page once all of its runs have ended.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison.drawing import mean_panels
from comparison.figures import draw_critic_at_start, draw_trajectories, page_style, save
from comparison.results import AUROC, START, Results, Runs, compare, critic_at_start, trajectories
from comparison.runs import Piece, Slots, differing_settings, is_complete, train_all
from comparison.stopping import stopping_rows, stopping_table, to_json
from comparison.studies import REFERENCE, STUDIES, Study
from comparison.tables import critic_text, difference_tables, provenance, summary_tables, verdicts
from make_miniature import RECIPES, model_config, recipes_folder, size_problems, write_miniature
from neutrality import differing_metrics, metrics_of

from tempo_megatron.config import Numerics, load_config
from tempo_megatron.conversion.hf_config import backbone_settings
from tempo_megatron.conversion.hf_files import read_config
from tempo_megatron.report.panels import Section
from tempo_megatron.report.png import write_figures
from tempo_megatron.validation.numerics import numerics_problems

REFUSED = 2
"""The exit code where nothing was started or written."""
DIFFERENT = 1
"""The exit code where runs of two directories differ."""
FAILED = 1
"""The exit code where a run failed."""


def pieces_of(
    directory: Path,
    studies: Sequence[Study],
    seeds: Sequence[int],
    start: Sequence[str],
    loop: Sequence[str],
    recipes: Path = RECIPES,
) -> tuple[list[Piece], list[Piece]]:
    """Returns the runs that make the starts, and the studies' runs, which need them. A shared run appears once.

    `start` and `loop` are overrides of the two recipes, which are in the folder `recipes`.
    """
    settings_by_run = {name: settings for study in studies for name, settings in study.runs.items()}
    data = directory / "questions"
    model = f"model.hf_path={data / 'model'}"
    streams = [f"data.{name}=[{{path: {data}/{name}.jsonl}}]" for name in ("labeled", "unlabeled")]
    streams.append(f"data.held_out=[{{path: {data}/held_out.jsonl}}, {{path: {data}/familiar.jsonl}}]")
    examples = f"data.warm_start=[{{path: {data}/warm_start.jsonl}}]"
    start_config = load_config(recipes / "start.yaml", start)
    last, rate = start_config.loop.iterations, start_config.policy.optimizer.learning_rate
    starts, runs = [], []
    for seed in seeds:
        run = directory / f"{START}-{seed}"
        common = (model, *streams, f"seed={seed}")
        starts.append(Piece(recipes / "start.yaml", run, (*common, examples, *start)))
        checkpoints = run / "checkpoints"
        converged = checkpoints / f"iteration-{last:06d}"
        for name, settings in settings_by_run.items():
            values = {"data": data, "start": checkpoints, "start_learning_rate": rate}
            own = [_filled(text, values) for text in settings]
            overrides = (*common, f"policy.checkpoint={converged}", f"critic.checkpoint={converged}", *loop, *own)
            runs.append(Piece(recipes / "loop.yaml", directory / f"{name}-{seed}", overrides, start=run))
    return starts, runs


def _filled(setting: str, values: Mapping[str, object]) -> str:
    """Returns the setting with each `{name}` replaced by the value of that name."""
    for name, value in values.items():
        setting = setting.replace(f"{{{name}}}", str(value))
    return setting


def refusals(directory: Path, starts: Sequence[Piece], runs: Sequence[Piece], recipes: Path) -> list[str]:
    """Returns a line for each reason not to start: other settings, another size, or what a run would refuse."""
    lines = [line for piece in (*starts, *runs) for line in differing_settings(piece)]
    return [*lines, *size_problems(directory / "questions", recipes), *unsupported(runs, recipes)]


def unsupported(pieces: Sequence[Piece], recipes: Path) -> list[str]:
    """Returns a line for each reason why a run with exact numerics that is still to train would be refused.

    The run itself would say so only after the starts have been trained. The model of the size need not exist yet.
    """
    lines = []
    for piece in pieces:
        config = load_config(piece.recipe, piece.overrides)
        if config.numerics is Numerics.exact and not is_complete(piece.directory):
            model = Path(config.model.hf_path)
            settings = backbone_settings(read_config(model) if model.is_dir() else model_config(recipes))
            lines += [f"{piece.directory.name}: {problem}" for problem in numerics_problems(config, settings)]
    return lines


def draw(runs: Runs, k: int, directory: Path) -> list[Path]:
    """Writes the panels of a study as PNG files and returns their paths."""
    panels = [
        *mean_panels(runs, f"evaluation/unlabeled/avg@{k}", f"avg@{k} on unlabeled questions", share=True),
        *mean_panels(runs, f"evaluation/unlabeled/pass@{k}", f"pass@{k} on unlabeled questions", share=True),
        *mean_panels(runs, f"evaluation/held_out/avg@{k}", f"avg@{k} on held-out questions", share=True),
        *mean_panels(runs, AUROC, "AUROC of the reward within prompts", share=True),
    ]
    return write_figures([Section(directory.name, "", panels)], directory)


def draw_for_page(runs: Runs, k: int, directory: Path) -> Path:
    """Writes `trajectories.svg`, avg@k and pass@k on unlabeled questions over iterations, and returns its path."""
    by_run = {name: trajectories(paths, k) for name, paths in runs.items()}
    with page_style():
        return save(draw_trajectories(by_run, REFERENCE), directory / "trajectories.svg")


def critic_results(runs: Runs, results: Results, directory: Path) -> tuple[str, dict[str, Any]]:
    """Writes `critic-at-start.svg`, and returns the sentences and the numbers of a study of critics."""
    critic = critic_at_start(runs, results)
    measure = next(iter(next(iter(results[START].values()))))
    with page_style():
        save(draw_critic_at_start(critic["points"], measure), directory / "critic-at-start.svg")
    return critic_text(critic), critic


def write_results(directory: Path, name: str, study: Study, seeds: Sequence[int], k: int) -> str:
    """Writes the study's page, figures and numbers, and returns the page."""
    runs = {run: [directory / f"{run}-{seed}" for seed in seeds] for run in study.runs}
    figures = directory / "figures" / name
    results, rows = compare(runs, REFERENCE, k), stopping_rows(runs, k)
    numbers: dict[str, Any] = {**results, "stopping": to_json(rows)}
    about = f"Seeds {', '.join(map(str, seeds))}. {provenance(runs)}"
    parts = [f"## {study.question}\n", f"{about.strip()}\n", summary_tables(results), verdicts(results)]
    if study.compares_critics:
        text, numbers["critic_at_start"] = critic_results(runs, results, figures)
        parts.append(text)
    parts += ["### Each seed\n", difference_tables(results), "### Stopping\n", stopping_table(rows, k)]
    page = "\n".join(parts)
    (directory / f"{name}.md").write_text(page)
    (directory / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n")
    draw(runs, k, figures)
    draw_for_page(runs, k, figures)
    return page


def train_runs(pieces: Sequence[Piece], slots: Slots) -> list[str]:
    """Trains the starts and the studies' runs. Returns a line for each run that failed or lacks its start."""
    remaining = sum(not is_complete(piece.directory) for piece in pieces)
    print(f"{len(pieces)} runs, {remaining} to train", flush=True)
    try:
        train_all(pieces, slots)
    except ExceptionGroup as group:
        return [*map(str, group.exceptions)]
    return []


def write_complete(directory: Path, names: Sequence[str], seeds: Sequence[int], k: int) -> list[str]:
    """Writes and prints the page of each study whose runs have ended. Returns a line for each other study."""
    lines = []
    for name in names:
        runs = [f"{run}-{seed}" for run in STUDIES[name].runs for seed in seeds]
        if incomplete := [run for run in runs if not is_complete(directory / run)]:
            lines.append(f"{name}.md is not written, because runs are not complete: {', '.join(incomplete)}")
            continue
        try:
            print(write_results(directory, name, STUDIES[name], seeds, k))
        except Exception as error:  # The other studies get their pages.
            lines.append(f"{name}.md or its figures cannot be written: {type(error).__name__}: {error}")
    return lines


def differences(directory: Path, other: Path, studies: Sequence[Study], seeds: Sequence[int]) -> list[str]:
    """Returns what differs between the metrics of two directories' runs, starts included, except time and memory."""
    lines = []
    names = dict.fromkeys((START, *(name for study in studies for name in study.runs)))
    for run in (f"{name}-{seed}" for name in names for seed in seeds):
        absent = [str(parent / run) for parent in (directory, other) if not is_complete(parent / run)]
        if absent:
            lines += [f"{path}: the run is not complete" for path in absent]
        else:
            lines += differing_metrics(run, metrics_of(other / run, {}), metrics_of(directory / run, {}))
    return lines


def study_names(text: str) -> list[str]:
    """Returns the names in a list with commas. Raises ArgumentTypeError for a name that is no study's."""
    names = [*dict.fromkeys(text.split(","))]
    if unknown := [name for name in names if name not in STUDIES]:
        raise argparse.ArgumentTypeError(f"no study is called {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--study", type=study_names, default=["methods"], help="studies with commas between them")
    parser.add_argument("--seeds", default="5,6,7,8,9", help="seeds with commas between them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--gpus", default="", help="GPU numbers with commas: each run gets a free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between starts on a GPU")
    parser.add_argument("--resume", action="store_true", help="continue in a directory that has runs")
    parser.add_argument("--start", nargs="*", default=[], metavar="key=value", help="settings of the starts")
    parser.add_argument("--loop", nargs="*", default=[], metavar="key=value", help="settings of the study's runs")
    parser.add_argument("--against", type=Path, help="compare the finished runs with those of another directory")
    parser.add_argument("--recipes", type=recipes_folder, default=RECIPES, help="folder of a size's recipes")
    options = parser.parse_args()
    studies, seeds = [STUDIES[name] for name in options.study], [int(seed) for seed in options.seeds.split(",")]
    directory = options.directory.absolute()
    if options.against:
        lines = differences(directory, options.against, studies, seeds)
        print("\n".join(lines[:50]) or "all bits agree")
        return DIFFERENT if lines else 0
    if directory.exists() and not options.resume:
        print(f"{options.directory} exists; --resume continues it", file=sys.stderr)
        return REFUSED
    starts, runs = pieces_of(directory, studies, seeds, options.start, options.loop, options.recipes)
    if problems := refusals(directory, starts, runs, options.recipes):
        print("\n".join(problems), file=sys.stderr)
        return REFUSED
    write_miniature(directory / "questions", recipes=options.recipes)
    slots = Slots(options.jobs, tuple(options.gpus.split(",")) if options.gpus else (), options.delay)
    problems = train_runs([*starts, *runs], slots)
    k = load_config(options.recipes / "loop.yaml", options.loop).evaluation.k
    problems += write_complete(directory, options.study, seeds, k)
    if problems:
        print("\n".join(problems), "The same command with --resume goes on.", sep="\n", file=sys.stderr)
    return FAILED if problems else 0


if __name__ == "__main__":
    sys.exit(main())
