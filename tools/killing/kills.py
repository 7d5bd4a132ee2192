"""Kills runs at random moments, and checks their checkpoints after each kill and their results at the end."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killing.attempt import Attempt
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.megatron.checkpointing import integrity
from tempo_megatron.megatron.checkpointing.saver import checkpoint_directories, checkpoint_order, complete_checkpoints

_TIME_LIMIT = 300.0
"""Seconds that a run, or the wait for a save, may take."""
_SAVE_SECONDS = 0.5
"""A kill that is aimed at a save comes within this time after the save starts."""
_UNREPEATABLE_METRICS = ("seconds/", "memory/")


@dataclass(frozen=True)
class Kill:
    """One kill and the state that it left."""

    number: int
    run: str
    asynchronous: bool
    aimed_at_a_save: bool
    seconds: float
    during_a_save: bool
    newest_before: str | None
    newest_after: str | None
    problems: tuple[str, ...]
    """The checkpoints that the kill destroyed, or left incomplete under a checkpoint's name."""


@dataclass(frozen=True)
class Killer:
    """Starts a recipe in subdirectories of `directory` and kills the runs."""

    recipe: Path
    directory: Path
    ranks: int
    seed: int
    reference_seconds: float
    """Duration of the uninterrupted run. A kill comes within half of it, so that runs make progress."""

    def run(self, name: str, first: int, last: int) -> list[Kill]:
        """Runs a recipe to its end and returns its kills, numbered from `first` to at most `last`."""
        run_dir, kills = self.directory / name, []
        for number in range(first, last + 1):
            kill = self._kill(run_dir, number)
            if kill is None:
                return kills
            kills.append(kill)
            print(f"kill {number}: {run_dir.name}, newest checkpoint {kill.newest_after}", flush=True)
        finish(self._start(run_dir, last + 1))
        return kills

    def _start(self, run_dir: Path, number: int) -> Attempt:
        overrides = [f"run_dir={run_dir}", f"checkpoint.asynchronous={_is_asynchronous(number)}"]
        return Attempt(self.recipe, overrides, self.ranks, run_dir.with_suffix(".log"))

    def _kill(self, run_dir: Path, number: int) -> Kill | None:
        """Starts the run, kills it at its moment and checks its checkpoints; returns None if the run ends before."""
        checkpoints = run_dir / "checkpoints"
        before, unfinished_before, started = (
            checkpoint_directories(checkpoints)[-1:],
            _unfinished(checkpoints),
            time.monotonic(),
        )
        fraction = derive_seed("kill", self.seed, number) % 10**6 / 10**6
        attempt, aimed = self._start(run_dir, number), number % 3 == 0
        if aimed:
            if not _save_starts(attempt, checkpoints):
                return None
            time.sleep(_SAVE_SECONDS * fraction)
        elif attempt.ended(fraction * self.reference_seconds / 2):
            return None
        attempt.kill()
        seconds, after = round(time.monotonic() - started, 2), checkpoint_directories(checkpoints)[-1:]
        name_before, name_after = (newest[0].name if newest else None for newest in (before, after))
        problems = _checkpoint_problems(checkpoints)
        if before and (not after or checkpoint_order(after[0]) < checkpoint_order(before[0])):
            problems.append(f"the newest checkpoint was {name_before} and is {name_after}")
        return Kill(
            number=number,
            run=run_dir.name,
            asynchronous=_is_asynchronous(number),
            aimed_at_a_save=aimed,
            seconds=seconds,
            during_a_save=bool(_unfinished(checkpoints) - unfinished_before),
            newest_before=name_before,
            newest_after=name_after,
            problems=tuple(problems),
        )


def finish(attempt: Attempt) -> None:
    """Waits for the run's end. Raises TimeoutError."""
    if not attempt.ended(_TIME_LIMIT):
        attempt.kill()
        raise TimeoutError(f"a run did not end within {_TIME_LIMIT:.0f} s; its log shows its progress")


def differences(run_dir: Path, reference_dir: Path) -> list[str]:
    """Returns how the results of a killed run differ from the uninterrupted run's.

    It compares metrics, kept checkpoints and exported weights, and lists checkpoints that a restart skipped.
    """
    metrics, reference_metrics = _metrics(run_dir), _metrics(reference_dir)
    lines = []
    if len(metrics) != len(reference_metrics):
        lines.append(f"{len(metrics)} lines of metrics, uninterrupted {len(reference_metrics)}")
    for index, (row, reference) in enumerate(zip(metrics, reference_metrics, strict=False)):
        keys = [key for key in row | reference if row.get(key) != reference.get(key)]
        lines += [f"line {index}: {key} is {row.get(key)}, uninterrupted {reference.get(key)}" for key in keys]
    kept, expected = (
        [path.name for path in complete_checkpoints(run / "checkpoints")] for run in (run_dir, reference_dir)
    )
    if kept != expected:
        lines.append(f"checkpoints {kept}, uninterrupted {expected}")
    exported, reference_export = (run / "hf" / "model.safetensors" for run in (run_dir, reference_dir))
    if exported.read_bytes() != reference_export.read_bytes():
        lines.append("the exported weights differ")
    log = run_dir.with_suffix(".log").read_text(errors="replace")
    lines += [line for line in log.splitlines() if "passed over" in line]
    return [f"{run_dir.name}: {line}" for line in lines]


def _is_asynchronous(number: int) -> bool:
    return number % 2 == 0


def _save_starts(attempt: Attempt, checkpoints: Path) -> bool:
    """Waits for a new checkpoint write; returns False if the run ends before. Leftovers of kills do not count."""
    leftovers = set(checkpoints.glob(".writing-*"))
    deadline = time.monotonic() + _TIME_LIMIT
    while time.monotonic() < deadline:
        unfinished = set(checkpoints.glob(".writing-*"))
        if unfinished - leftovers:
            return True
        leftovers &= unfinished
        if attempt.ended(0.002):
            return False
    attempt.kill()
    raise TimeoutError(f"no save within {_TIME_LIMIT:.0f} s")


def _unfinished(checkpoints: Path) -> set[tuple[Path, int]]:
    """Returns the directories of unfinished writes with their modification times, so that new writes to one count."""
    return {(path, path.stat().st_mtime_ns) for path in checkpoints.glob(".writing-*")}


def _checkpoint_problems(checkpoints: Path) -> list[str]:
    """Returns what the manifests show to be wrong with the checkpoints that a restart may use."""
    problems = []
    for saved in checkpoint_directories(checkpoints):
        try:
            problems += integrity.manifest_problems(saved, integrity.read_manifest(saved), contents=True)
        except ConversionError as error:
            problems.append(str(error))
    return problems


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the logged metrics that a repetition reproduces."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(_UNREPEATABLE_METRICS)} for row in rows]
