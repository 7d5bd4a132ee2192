"""Kills at random moments, and what is looked at after each and at the end."""

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
from tempo_megatron.megatron.checkpointing.saver import checkpoint_order, complete_checkpoints, resumable_checkpoints

_LIMIT = 300.0
"""seconds that a run, or the wait for a save, may take"""
_SAVE_SECONDS = 0.5
"""after a save has begun, within which an aimed kill comes"""
_UNREPEATABLE = ("seconds/", "memory/")


@dataclass(frozen=True)
class Kill:
    """One kill. `problems`: checkpoints that it cost, or left half-written under a checkpoint's name."""

    number: int
    run: str
    asynchronous: bool
    aimed_at_a_save: bool
    seconds: float
    during_a_save: bool
    newest_before: str | None
    newest_after: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Killer:
    """Starts `recipe` in directories below `directory`. `span` is how long an uninterrupted run takes, in seconds: a
    kill comes within half of it, so that runs get on."""

    recipe: Path
    directory: Path
    ranks: int
    seed: int
    span: float

    def run(self, name: str, first: int, last: int) -> list[Kill]:
        """A run to its end, after kills that are numbered from `first` to at most `last`."""
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
        """Start the run, kill it at this kill's moment, and look at what is left; None if it ends before."""
        checkpoints = run_dir / "checkpoints"
        before, left, begun = resumable_checkpoints(checkpoints)[-1:], _unfinished(checkpoints), time.monotonic()
        share = derive_seed("kill", self.seed, number) % 10**6 / 10**6
        attempt, aimed = self._start(run_dir, number), number % 3 == 0
        if aimed:
            if not _save_begins(attempt, checkpoints):
                return None
            time.sleep(_SAVE_SECONDS * share)
        elif attempt.ended(share * self.span / 2):
            return None
        attempt.kill()
        seconds, after = round(time.monotonic() - begun, 2), resumable_checkpoints(checkpoints)[-1:]
        was, now = (found[0].name if found else None for found in (before, after))
        problems = _damaged(checkpoints)
        if before and (not after or checkpoint_order(after[0]) < checkpoint_order(before[0])):
            problems.append(f"the newest checkpoint was {was} and is {now}")
        saving = bool(_unfinished(checkpoints) - left)
        return Kill(number, run_dir.name, _is_asynchronous(number), aimed, seconds, saving, was, now, tuple(problems))


def finish(attempt: Attempt) -> None:
    """Wait for the end. Raises TimeoutError."""
    if not attempt.ended(_LIMIT):
        attempt.kill()
        raise TimeoutError(f"a run did not end within {_LIMIT:.0f} s; its log says how far it came")


def differences(run_dir: Path, whole: Path) -> list[str]:
    """What of an ended run is not as in the uninterrupted one: metrics, kept checkpoints, exported weights; and
    checkpoints that a restart would not use."""
    mine, theirs = _metrics(run_dir), _metrics(whole)
    found = []
    if len(mine) != len(theirs):
        found.append(f"{len(mine)} lines of metrics, uninterrupted {len(theirs)}")
    for at, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        keys = [key for key in one | other if one.get(key) != other.get(key)]
        found += [f"line {at}: {key} is {one.get(key)}, uninterrupted {other.get(key)}" for key in keys]
    kept, expected = ([path.name for path in complete_checkpoints(run / "checkpoints")] for run in (run_dir, whole))
    if kept != expected:
        found.append(f"checkpoints {kept}, uninterrupted {expected}")
    exported, wanted = (run / "hf" / "model.safetensors" for run in (run_dir, whole))
    if exported.read_bytes() != wanted.read_bytes():
        found.append("the exported weights differ")
    log = run_dir.with_suffix(".log").read_text(errors="replace")
    found += [line for line in log.splitlines() if "passed over" in line]
    return [f"{run_dir.name}: {line}" for line in found]


def _is_asynchronous(number: int) -> bool:
    return number % 2 == 0


def _save_begins(attempt: Attempt, checkpoints: Path) -> bool:
    """Wait until a checkpoint begins to be written; False if the run ends before. What an earlier kill left is none."""
    left = set(checkpoints.glob(".writing-*"))
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        now = set(checkpoints.glob(".writing-*"))
        if now - left:
            return True
        left &= now
        if attempt.ended(0.002):
            return False
    attempt.kill()
    raise TimeoutError(f"no save within {_LIMIT:.0f} s")


def _unfinished(checkpoints: Path) -> set[tuple[Path, int]]:
    """Directories of writes that did not end; one that was written into since is another."""
    return {(path, path.stat().st_mtime_ns) for path in checkpoints.glob(".writing-*")}


def _damaged(checkpoints: Path) -> list[str]:
    found = []
    for saved in resumable_checkpoints(checkpoints):
        try:
            found += integrity.manifest_problems(saved, integrity.read_manifest(saved), contents=True)
        except ConversionError as error:
            found.append(str(error))
    return found


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(_UNREPEATABLE)} for row in rows]
