"""What a run's data were: the contents of every file that its recipe names, and the questions that it learns from.

A run directory keeps both in `data.json`, so that a run which resumes neither mixes two sets of questions unnoticed nor
measures itself by questions whose answers it has learned.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tempo_megatron.config import Config, DataChanged, DataConfig
from tempo_megatron.data.identity import key, spoken
from tempo_megatron.utils.atomic_files import write_text_atomically

_NAME = "data.json"
_KEY_LENGTH = len(key(""))


@dataclass(frozen=True)
class FileRecord:
    """A data file as it was. `rows`: of each row the `key` of its question and a hash of all that it says."""

    sha256: str
    rows: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataRecord:
    """`files` by the paths that the recipe names; `learned`: keys of questions that train with their answers."""

    files: dict[str, FileRecord]
    learned: frozenset[str] = frozenset()

    @property
    def contents(self) -> str:
        """A hash of all files' contents."""
        listed = sorted((path, file.sha256) for path, file in self.files.items())
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def read_record(run_dir: str) -> DataRecord | None:
    """What the run directory keeps; None where it keeps nothing, or none is named."""
    path = Path(run_dir, _NAME)
    if not run_dir or not path.is_file():
        return None
    kept = json.loads(path.read_text())
    return DataRecord(
        {name: FileRecord(**file) for name, file in kept["files"].items()}, frozenset(map(str, kept["learned"]))
    )


def learned_questions(run_dir: str) -> frozenset[str]:
    """Keys of the questions whose answers the run has learned from, or may have; empty for a new one."""
    record = read_record(run_dir)
    return record.learned if record else frozenset()


def changes(config: Config) -> list[str]:
    """A line for each file whose contents are not those that the run directory keeps: which rows differ."""
    record = read_record(config.run_dir)
    if record is None:
        return []
    lines = []
    for path in _paths(config.data):
        before = record.files.get(str(path))
        with contextlib.suppress(OSError):  # a file that cannot be read is named by who reads it for its rows
            if before and path.is_file() and before.sha256 != _sha256(path):
                lines.append(f"{path}: its contents are not those that the run began with: {_difference(before, path)}")
    return lines


def fingerprint_problems(config: Config) -> list[str]:
    """`changes` of an existing run, and what to do; empty where `data.changed` accepts them."""
    lines = [] if config.data.changed is DataChanged.accept else changes(config)
    if lines:
        lines.append(
            f"run_dir {config.run_dir}: put the files back to go on with it, set data.changed=accept to go on with the "
            "new contents, or name another run_dir"
        )
    return lines


def keep_record(config: Config, learned: Iterable[str]) -> tuple[list[str], str]:
    """Write the data of a run that begins or goes on into its directory, `learned` beside what it learned before.

    Returns a line for each file whose new contents are accepted, and the hash of all contents.
    """
    before, accepted = read_record(config.run_dir), changes(config)
    earlier = before.learned if before else frozenset()
    files = {str(path): _describe(path) for path in _paths(config.data)}
    now = DataRecord(files, earlier | frozenset(learned))
    if now != before:
        kept: dict[str, Any] = {"files": {path: asdict(file) for path, file in now.files.items()}}
        write_text_atomically(Path(config.run_dir, _NAME), json.dumps(kept | {"learned": sorted(now.learned)}) + "\n")
    return [f"data.changed=accept: {line}" for line in accepted], now.contents


def _paths(data: DataConfig) -> list[Path]:
    return [Path(path) for path in dict.fromkeys(source.path for source in data.sources()) if path]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(path: Path) -> FileRecord:
    rows = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    return FileRecord(_sha256(path), [_question(row) + hashlib.sha256(row).hexdigest()[:_KEY_LENGTH] for row in rows])


def _question(row: bytes) -> str:
    """The key of a row's question; of a row that none can be read of, that of its bytes."""
    try:
        read = json.loads(row)
        return key(spoken(read["messages"]) if read.get("messages") else read["prompt"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return key(repr(row))


def _difference(before: FileRecord, path: Path) -> str:
    """How many rows are gone, new, or of the same question and say something else."""
    rows, now = Counter(before.rows), Counter(_describe(path).rows)
    gone, new = (Counter(row[:_KEY_LENGTH] for row in one.elements()) for one in (rows - now, now - rows))
    changed = (gone & new).total()
    if not (gone or new):
        return "the same rows in another order or form"
    return f"{gone.total() - changed} rows removed, {new.total() - changed} added, {changed} changed"
