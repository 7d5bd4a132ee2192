"""What a run directory holds: settings, metrics, samples and how far the run is."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tempo_megatron.report.words import plural
from tempo_megatron.run_dir.layout import interrupted_mark, read_summary

_ALIVE_SECONDS = 60.0
"""A run touches its lock file every second. One that was touched this recently belongs to a run in progress."""

Row = Mapping[str, Any]
"""A line of metrics.jsonl."""


class RunStatus(StrEnum):
    """How far a run is."""

    finished = "finished"
    running = "running"
    interrupted = "interrupted"
    stopped = "stopped"
    """It has not finished, and nothing says that it goes on."""


@dataclass(frozen=True)
class Response:
    """One sampled response of an evaluation."""

    sample: int
    correct: float | None
    """1 for a right response, 0 for a wrong one; None where it has no grade."""
    answer: str
    """The final answer that was read from the response."""
    cluster: int | None
    """Responses to a question with equal answers have the same number. None for one that does not vote."""
    tokens: int
    truncated: bool
    offset: int
    """The place of the response's line in its file, in bytes. Its text is read when it is shown: the texts of a large
    run would fill the memory."""


@dataclass(frozen=True)
class Evaluation:
    """The responses of one evaluation."""

    iteration: int
    sets: dict[str, dict[str, list[Response]]]
    """Set -> question id -> responses."""
    path: Path

    def text(self, response: Response) -> str:
        """Return the text of one of these responses; "" where the file has changed since."""
        try:
            with self.path.open("rb") as file:
                file.seek(response.offset)
                return str(json.loads(file.readline())["response"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds. Everything but the directory may be absent."""

    directory: Path
    settings: dict[str, Any]
    """The contents of config.yaml."""
    environment: dict[str, str]
    """The contents of environment.json; empty for a run that began before it was recorded."""
    rows: Sequence[Row]
    evaluations: list[Evaluation]
    """By iteration."""
    questions: dict[str, str]
    """Question id -> its text as the model reads it."""
    critic_lines: dict[int, Row]
    """Iteration -> its line of critic.jsonl: the critic's calibration bins, and its values of unlabeled questions."""
    plan: dict[str, Any] | None
    """The contents of plan.json, what `tempo plan` predicted; None where nothing could be predicted."""
    summary: dict[str, Any] | None
    status: RunStatus
    ending: str = ""
    """Why the run was interrupted or failed; empty where nothing says so."""
    unreadable: list[str] = field(default_factory=list)
    """A sentence for each file that could not be read whole."""
    path_as_name: bool = False
    """Whether the run is named by its path, because another run of the page has the same directory name."""

    @property
    def name(self) -> str:
        return str(self.directory) if self.path_as_name else self.directory.resolve().name

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting by its dotted key, or `default` where config.yaml has none."""
        value: Any = self.settings
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    def training_rows(self) -> list[Row]:
        """Return the lines of the iterations, and of the evaluation before the first."""
        return [row for row in self.rows if row.get("stage") == "train"]

    @property
    def iteration(self) -> int:
        """The last iteration with a line; 0 before the first."""
        return max((row["iteration"] for row in self.training_rows()), default=0)

    @property
    def starts(self) -> int:
        """How many times the run started, as far as the log tells: each start measures its own building."""
        return sum("seconds/start" in row for row in self.rows)

    def last(self, key: str) -> Any:
        """Return the last finite number, or other value, of a metric; None where no line has one."""
        for row in reversed(self.rows):
            value = row.get(key)
            if value is not None and (not isinstance(value, float) or math.isfinite(value)):
                return value
        return None

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Return (iteration, value) of each line of the critic's start and of the iterations with a finite value.

        Iterations of the critic's start are 0 or below.
        """
        return [
            (row["iteration"], float(value))
            for row in self.rows
            if row.get("stage") != "warm_start" and isinstance(value := row.get(key), int | float)
            if math.isfinite(value)
        ]


def read_run(directory: Path) -> RunRecord:
    """Return the record of a run directory. Raises FileNotFoundError for a directory without a run."""
    config = directory / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{directory} is no run directory: it has no config.yaml")
    settings: Any = OmegaConf.to_container(OmegaConf.load(config))
    unreadable: list[str] = []
    is_growing = holds_fresh_lock(directory)
    rows = [row for row in json_rows(directory / "metrics.jsonl", unreadable, is_growing) if "iteration" in row]
    samples = directory / "samples"
    last = max((row["iteration"] for row in rows if row.get("stage") == "train"), default=0)
    paths = sorted(samples.glob("iteration-*.jsonl"))
    if rows:  # a run that resumes from an earlier checkpoint leaves files of the iterations that it repeats
        paths = [path for path in paths if iteration_of(path) <= last]
    evaluations = [_evaluation(path, unreadable) for path in paths]
    questions = {
        row["prompt"]: row["question"] for row in json_rows(samples / "questions.jsonl", unreadable, is_growing)
    }
    critic_lines: dict[int, Row] = {
        row["iteration"]: row
        for row in json_rows(directory / "critic.jsonl", unreadable, is_growing)
        if not rows or row["iteration"] <= last
    }
    environment, plan = (_json_file(directory / name) for name in ("environment.json", "plan.json"))
    summary = read_summary(directory)
    status, ending = _status(directory, summary, last)
    return RunRecord(
        directory,
        settings,
        environment or {},
        rows,
        evaluations,
        questions,
        critic_lines,
        plan,
        summary,
        status,
        ending,
        unreadable,
    )


def read_runs(directories: Sequence[Path]) -> list[RunRecord]:
    """Return the records of run directories. Those whose names repeat are named by their paths.

    Raises FileNotFoundError for a directory without a run.
    """
    records = [read_run(directory) for directory in directories]
    counts = Counter(record.name for record in records)
    return [replace(record, path_as_name=counts[record.name] > 1) for record in records]


def holds_fresh_lock(directory: Path) -> bool:
    """Return whether a lock of the run directory was touched in the last minute, as a run in progress does."""
    now = time.time()
    for path in directory.glob("running-*"):
        with contextlib.suppress(FileNotFoundError):  # the run has left the directory meanwhile
            if now - path.stat().st_mtime < _ALIVE_SECONDS:
                return True
    return False


def _status(directory: Path, summary: dict[str, Any] | None, last: int) -> tuple[RunStatus, str]:
    """Return how far the run is, and why it was interrupted or failed.

    A run that finishes holds its lock while its report is made, so a summary of its last iteration comes first. The
    summary of an earlier end does not count for a run that goes on.
    """
    if summary is not None and last <= summary.get("iterations", 0):
        return RunStatus.finished, ""
    if holds_fresh_lock(directory):
        return RunStatus.running, ""
    mark = interrupted_mark(directory)
    if mark.is_file():
        return RunStatus.interrupted, mark.read_text(errors="replace").strip()
    failures = sorted((directory / "failures").glob("rank-*.txt"))
    last_lines = [path.read_text(errors="replace").strip().splitlines()[-1:] for path in failures]
    return RunStatus.stopped, next((line for lines in last_lines for line in lines), "")


def _json_file(path: Path) -> dict[str, Any] | None:
    """Return the contents of a JSON file; None where it does not exist."""
    if not path.is_file():
        return None
    contents: dict[str, Any] = json.loads(path.read_text())
    return contents


def _evaluation(path: Path, unreadable: list[str]) -> Evaluation:
    sets: dict[str, dict[str, list[Response]]] = {}
    for offset, row in _placed_rows(path, unreadable):
        grade = row.get("correct")
        response = Response(
            sample=row["sample"],
            correct=float(grade) if isinstance(grade, int | float) and math.isfinite(grade) else None,
            answer=str(row.get("answer") or ""),
            cluster=row.get("cluster"),
            tokens=row["tokens"],
            truncated=row["finish_reason"] == "length",
            offset=offset,
        )
        sets.setdefault(row["set"], {}).setdefault(row["prompt"], []).append(response)
    return Evaluation(iteration_of(path), sets, path)


def iteration_of(path: Path) -> int:
    """Return the iteration of a file of samples: 20 for `iteration-000020.jsonl`."""
    return int(path.stem.rpartition("-")[2])


def json_rows(path: Path, unreadable: list[str], is_growing: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file (`_placed_rows`)."""
    return (row for _, row in _placed_rows(path, unreadable, is_growing))


def _placed_rows(path: Path, unreadable: list[str], is_growing: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (place in bytes, line) for the lines of a file; none where it does not exist.

    A run that is killed, or still writes, may leave a part of a line. Such lines are counted in `unreadable`,
    except the last one of a file that grows: its other part is on its way.
    """
    if not path.is_file():
        return
    damaged = next_offset = 0
    with path.open("rb") as file:
        for line in file:
            offset, next_offset = next_offset, next_offset + len(line)
            try:
                row = json.loads(line.decode(errors="replace"))
            except ValueError:
                damaged += not is_growing or line.endswith(b"\n")
                continue
            if isinstance(row, dict):
                yield offset, row
    if damaged:
        unreadable.append(f"{path.name}: {plural(damaged, 'line')} left out, which could not be read.")
