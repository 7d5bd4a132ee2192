"""Records a run's data: the contents of every file that its recipe names, and the questions that it learns from.

The record is `data.json` in the run directory. A resumed run compares its files with it, so that it does not silently
mix two sets of questions, nor evaluate on questions whose answers it has learned.
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
from tempo_megatron.data.identity import conversation_text, question_key
from tempo_megatron.utils.atomic_files import write_text_atomically

_RECORD_NAME = "data.json"
_KEY_LENGTH = len(question_key(""))


@dataclass(frozen=True)
class FileRecord:
    """The contents of a data file."""

    sha256: str
    rows: list[str] = field(default_factory=list)
    """For each row: the `question_key` of its question, followed by a hash of its bytes."""


@dataclass(frozen=True)
class DataRecord:
    """What `data.json` holds."""

    files: dict[str, FileRecord]
    """The data files, by the paths in the recipe."""
    learned: frozenset[str] = frozenset()
    """The keys of the questions that train with their answers."""

    @property
    def contents(self) -> str:
        """A hash of all files' contents."""
        hashes = sorted((path, file.sha256) for path, file in self.files.items())
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def read_record(run_dir: str) -> DataRecord | None:
    """Return the record of a run directory; None where there is no record or no run directory."""
    path = Path(run_dir, _RECORD_NAME)
    if not run_dir or not path.is_file():
        return None
    stored = json.loads(path.read_text())
    files = {name: FileRecord(**file) for name, file in stored["files"].items()}
    return DataRecord(files, frozenset(map(str, stored["learned"])))


def learned_questions(run_dir: str) -> frozenset[str]:
    """Return the keys of the questions whose answers the run may have learned; empty for a new run."""
    record = read_record(run_dir)
    return record.learned if record else frozenset()


def data_changes(config: Config) -> list[str]:
    """Return a line for each file whose contents differ from the record, with the numbers of rows that differ."""
    record = read_record(config.run_dir)
    if record is None:
        return []
    lines = []
    for path in _paths(config.data):
        recorded = record.files.get(str(path))
        with contextlib.suppress(OSError):  # An unreadable file is reported where its rows are read.
            if recorded and path.is_file() and recorded.sha256 != _sha256(path):
                lines.append(f"{path}: its contents changed since the run began: {_difference(recorded, path)}")
    return lines


def fingerprint_problems(config: Config) -> list[str]:
    """Return the `data_changes` of an existing run and the remedy; empty where `data.changed` accepts changes."""
    lines = [] if config.data.changed is DataChanged.accept else data_changes(config)
    if lines:
        lines.append(
            f"run_dir {config.run_dir}: restore the files to resume this run, set data.changed=accept to resume it "
            "with the new contents, or name another run_dir"
        )
    return lines


def update_record(config: Config, learned: Iterable[str]) -> tuple[list[str], str]:
    """Write the record of a run that starts or resumes. Adds `learned` to the questions that it learned before.

    Returns a line for each file whose new contents are accepted, and the hash of all contents.
    """
    previous, accepted = read_record(config.run_dir), data_changes(config)
    learned_before = previous.learned if previous else frozenset()
    files = {str(path): _file_record(path) for path in _paths(config.data)}
    record = DataRecord(files, learned_before | frozenset(learned))
    if record != previous:
        content: dict[str, Any] = {"files": {path: asdict(file) for path, file in record.files.items()}}
        content["learned"] = sorted(record.learned)
        write_text_atomically(Path(config.run_dir, _RECORD_NAME), json.dumps(content) + "\n")
    return [f"data.changed=accept: {line}" for line in accepted], record.contents


def _paths(data: DataConfig) -> list[Path]:
    return [Path(path) for path in dict.fromkeys(source.path for source in data.sources()) if path]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_record(path: Path) -> FileRecord:
    rows = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    return FileRecord(_sha256(path), [_row_key(row) + hashlib.sha256(row).hexdigest()[:_KEY_LENGTH] for row in rows])


def _row_key(row: bytes) -> str:
    """Return the key of a row's question, or of the row's bytes where no question can be read."""
    try:
        fields = json.loads(row)
        return question_key(conversation_text(fields["messages"]) if fields.get("messages") else fields["prompt"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return question_key(repr(row))


def _difference(recorded: FileRecord, path: Path) -> str:
    """Return how many rows are removed, added, or have the same question and other contents."""
    before, after = Counter(recorded.rows), Counter(_file_record(path).rows)
    removed = Counter(row[:_KEY_LENGTH] for row in (before - after).elements())
    added = Counter(row[:_KEY_LENGTH] for row in (after - before).elements())
    changed = (removed & added).total()
    if not (removed or added):
        return "the same rows in another order or form"
    return f"{removed.total() - changed} rows removed, {added.total() - changed} added, {changed} changed"
