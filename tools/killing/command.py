"""The command line of kill_test: an uninterrupted run, killed ones beside it, a table."""

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
    """Exit codes: 0 all held, 1 something did not."""
    given = _parser().parse_args(arguments)
    directory: Path = given.directory
    directory.mkdir(parents=True)
    recipe = write_recipe(directory, given.model, given.ranks, given.iterations)
    whole, begun = directory / "whole", time.monotonic()
    finish(Attempt(recipe, [f"run_dir={whole}"], given.ranks, whole.with_suffix(".log")))
    killer = Killer(recipe, directory, given.ranks, given.seed, time.monotonic() - begun)
    kills: list[Kill] = []
    found: list[str] = []
    runs = 0
    while len(kills) < given.kills:
        runs += 1
        kills += killer.run(f"killed-{runs}", len(kills) + 1, given.kills)
        found += differences(directory / f"killed-{runs}", whole)
    text = _table(kills, found, given.ranks, given.seed, killer.span)
    (directory / "kills.md").write_text(text)
    written = {"seed": given.seed, "ranks": given.ranks, "uninterrupted_seconds": round(killer.span, 1)}
    listed = {"kills": [asdict(kill) for kill in kills], "differences": found}
    (directory / "kills.json").write_text(json.dumps(written | listed, indent=2) + "\n")
    print(text, end="")
    return int(bool(found or any(kill.problems for kill in kills)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("kill_test", description="Kill a small run at random moments.")
    parser.add_argument("directory", type=Path, help="made by the command; must not exist")
    parser.add_argument("--kills", type=int, default=30, help="(30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--ranks", type=int, default=2, help="tensor-parallel ranks (2)")
    parser.add_argument("--iterations", type=int, default=8, help="of a run (8)")
    parser.add_argument("--model", type=Path, help="a demo model; made where none is given")
    return parser


def _table(kills: Sequence[Kill], found: Sequence[str], ranks: int, seed: int, span: float) -> str:
    lines = [
        f"{len(kills)} kills of {ranks} ranks, seed {seed}; the uninterrupted run took {span:.1f} s.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(f"| {' | '.join(_cells(kill))} |" for kill in kills),
        "",
        "Metrics, kept checkpoints and exported weights of every run at its end, beside the uninterrupted run's: "
        + ("equal." if not found else "different."),
        *(f"- {line}" for line in found),
    ]
    return "\n".join(lines) + "\n"


def _cells(kill: Kill) -> list[str]:
    newest = [at or "none" for at in (kill.newest_before, kill.newest_after)]
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
