"""Rows of Parquet, JSONL, JSON and CSV files and of the hub, each with the name of the part that it is from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_megatron.data.reading import DataError

Rows = Iterator[tuple[str, dict[str, Any]]]
"""part (a subset's or task's name, "" where there is one part only) and row"""

_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Hub:
    """A data set of the hub. A repository with `{part}` in its name is one for each part, else parts are configs."""

    repository: str
    split: str
    parts: tuple[str, ...] = ("",)

    def __str__(self) -> str:
        return self.repository

    def read(self) -> Rows:
        """Raises DataError where a part cannot be had, saying what to do instead."""
        import datasets

        for part in self.parts:
            repository = self.repository.format(part=part)
            config = None if repository != self.repository else part or None
            try:
                rows = datasets.load_dataset(repository, config, split=self.split)
            except Exception as error:  # network, access and format errors of half a dozen packages
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise DataError(
                    f"{repository}: {reason}\ndownload its files where there is a network (a gated set needs its terms "
                    "accepted) and give --from PATH"
                ) from error
            for row in rows:
                yield part, row


def read(path: Path, pattern: str = "*") -> Rows:
    """The rows of a file, or of a directory's files that match. Raises DataError naming what cannot be read."""
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    files = [path] if path.is_file() else sorted(p for p in path.rglob(pattern) if p.suffix in _SUFFIXES)
    if not files:
        raise DataError(f"{path}: no {pattern} of {', '.join(_SUFFIXES)} in it")
    for file in files:
        try:
            yield from _file(file)
        except (OSError, ValueError, csv.Error) as error:  # those of JSON and Parquet are ValueErrors
            raise DataError(f"{file}: not readable: {error}") from error


def _file(path: Path) -> Rows:
    part = path.stem
    if path.suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from ((part, row) for row in batch.to_pylist())
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as lines:
            yield from ((part, dict(row)) for row in csv.DictReader(lines))
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            yield from ((part, json.loads(line)) for line in lines if line.strip())
    elif path.suffix == ".json":
        yield from _json(json.loads(path.read_text(encoding="utf-8")), part)
    else:
        raise ValueError(f"known are {', '.join(_SUFFIXES)}")


def _json(content: Any, part: str) -> Rows:
    """A list of rows, or a task's `examples`, each with the task's own texts; the task's `name` is the part's."""
    if isinstance(content, list):
        yield from ((part, row) for row in content)
    elif isinstance(content, dict) and ("examples" in content or "name" in content):  # without: it gathers sub-tasks
        texts = {name: value for name, value in content.items() if isinstance(value, str)}
        yield from ((content.get("name", part), {**texts, **row}) for row in content.get("examples", ()))
    else:
        raise ValueError("expected a list of rows or an object with `examples`")
