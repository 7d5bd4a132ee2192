"""Rows of Parquet, JSONL, JSON and CSV files and of the hub, each with the name of the part that it is from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from pyarrow.lib import ArrowException

from tempo_megatron.data.reading import (
    DataError,
    Problem,
    RowLocation,
    json_rows,
    json_type,
    no_row,
    read_text,
    text_lines,
)

SourceRows = Iterator[tuple[RowLocation, str, dict[str, Any]]]
"""where the row is, its part (a subset's or task's name, "" where there is one part only), and the row"""

_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Hub:
    """A data set of the hub. A repository with `{part}` in its name is one for each part, else parts are configs."""

    repository: str
    split: str
    parts: tuple[str, ...] = ("",)

    def __str__(self) -> str:
        return self.repository

    def read(self) -> SourceRows:
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
            for number, row in enumerate(rows, 1):
                yield RowLocation(" ".join(filter(None, (repository, config))), number, "row"), part, row


def read(path: Path, pattern: str, problems: list[Problem]) -> SourceRows:
    """The rows of a file, or of a directory's files that match. What cannot be read is added to `problems`.

    Raises DataError where there is no file to read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    files = [path] if path.is_file() else sorted(p for p in path.rglob(pattern) if p.suffix in _SUFFIXES)
    if not files:
        raise DataError(f"{path}: no {pattern} of {', '.join(_SUFFIXES)} in it")
    for file in files:
        try:
            yield from _file(file, problems)
        except (OSError, ValueError, RecursionError, csv.Error, ArrowException) as error:
            problems.append((RowLocation(str(file)), f"not readable: {' '.join(str(error).split())}"))


def _file(path: Path, problems: list[Problem]) -> SourceRows:
    part = path.stem
    if path.suffix == ".jsonl":
        yield from ((place, part, row) for place, row in json_rows(path, problems))
        return
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix == ".csv":
        rows = iter(csv.DictReader(line for _, line in text_lines(path, problems)))
    elif path.suffix == ".json":
        part, rows = _json(json.loads(read_text(path)), part)
    else:
        raise ValueError(f"known are {', '.join(_SUFFIXES)}")
    for number, row in enumerate(rows, 1):
        place = RowLocation(str(path), number, "row")
        if reason := _wrong(row):
            problems.append((place, reason))
        else:
            yield place, part, row


def _wrong(row: Any) -> str:
    surplus = isinstance(row, dict) and None in row
    return "more values than the header has columns" if surplus else no_row(row)


def _parquet(path: Path) -> Iterator[Any]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _json(content: Any, part: str) -> tuple[str, Iterator[Any]]:
    """The part's name and its rows: of a list, or a task's `examples`, each with the task's own texts.

    The task's `name` is the part's. An object with neither gathers sub-tasks in files of their own.
    """
    if isinstance(content, list):
        return part, iter(content)
    if not isinstance(content, dict) or not ("examples" in content or "name" in content):
        raise ValueError("expected a list of rows or an object with `examples`")
    texts = {name: value for name, value in content.items() if isinstance(value, str)}
    examples = content.get("examples", [])
    if not isinstance(examples, list):
        raise ValueError(f"`examples` is a list of rows, not {json_type(examples)}")
    return texts.get("name", part), (texts | row if isinstance(row, dict) else row for row in examples)
