"""The command line of kill_test: runs an uninterrupted run and killed runs, and writes a table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from killing.attempt import Attempt
from killing.kills import Kill, Killer, differences, finish
from killing.recipe import write_recipe

_COLUMNS = ("kill", "run", "writes", "aimed at", "s", "save under way", "newest before", "after", "problems")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 if all checks pass, 1 otherwise."""
    options = _parser().parse_args(arguments)
    directory: Path = options.directory
    directory.mkdir(parents=True)
    recipe = write_recipe(directory, options.model, options.ranks, options.iterations)
    reference_dir, started = directory / "whole", time.monotonic()
    finish(Attempt(recipe, [f"run_dir={reference_dir}"], options.ranks, reference_dir.with_suffix(".log")))
    killer = Killer(recipe, directory, options.ranks, options.seed, time.monotonic() - started)
    kills: list[Kill] = []
    run_differences: list[str] = []
    runs = 0
    while len(kills) < options.kills:
        runs += 1
        kills += killer.run(f"killed-{runs}", len(kills) + 1, options.kills)
        run_differences += differences(directory / f"killed-{runs}", reference_dir)
    text = _table(kills, run_differences, options.ranks, options.seed, killer.reference_seconds)
    (directory / "kills.md").write_text(text)
    settings = {
        "seed": options.seed,
        "ranks": options.ranks,
        "uninterrupted_seconds": round(killer.reference_seconds, 1),
    }
    outcome = {"kills": [asdict(kill) for kill in kills], "differences": run_differences}
    (directory / "kills.json").write_text(json.dumps(settings | outcome, indent=2) + "\n")
    print(text, end="")
    return int(bool(run_differences or any(kill.problems for kill in kills)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("kill_test", description="Kills a small run at random moments.")
    parser.add_argument("directory", type=Path, help="the command creates it; it must not exist")
    parser.add_argument("--kills", type=int, default=30, help="(30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--ranks", type=int, default=2, help="tensor-parallel ranks (2)")
    parser.add_argument("--iterations", type=int, default=8, help="iterations of a run (8)")
    parser.add_argument("--model", type=Path, help="a demo model; the command makes one by default")
    return parser


def _table(
    kills: Sequence[Kill], run_differences: Sequence[str], ranks: int, seed: int, reference_seconds: float
) -> str:
    lines = [
        f"{len(kills)} kills of {ranks} ranks, seed {seed}; the uninterrupted run took {reference_seconds:.1f} s.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(f"| {' | '.join(_cells(kill))} |" for kill in kills),
        "",
        "Metrics, kept checkpoints and exported weights of every run at its end, beside the uninterrupted run's: "
        + ("equal." if not run_differences else "different."),
        *(f"- {line}" for line in run_differences),
    ]
    return "\n".join(lines) + "\n"


def _cells(kill: Kill) -> list[str]:
    newest = [checkpoint or "none" for checkpoint in (kill.newest_before, kill.newest_after)]
    return [
        str(kill.number),
        kill.run,
        "in a thread" if kill.asynchronous else "at once",
        "a save" if kill.aimed_at_a_save else "any moment",
        f"{kill.seconds:.2f}",
        "yes" if kill.during_a_save else "no",
        *newest,
        "; ".join(kill.problems) or "none",
    ]
