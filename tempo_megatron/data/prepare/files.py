"""Reads rows of Parquet, JSONL, JSON and CSV files and of the hub. Each row has the name of its part."""

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
    json_type_name,
    read_text,
    row_problem,
    text_lines,
)

SourceRows = Iterator[tuple[RowLocation, str, dict[str, Any]]]
"""The location of a row; its part, which is the name of a subset or task, or "" for a source of one part; the row."""

_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub. `{part}` in its name stands for one repository a part; otherwise parts are configs."""

    repository: str
    split: str
    parts: tuple[str, ...] = ("",)

    def __str__(self) -> str:
        return self.repository

    def read(self) -> SourceRows:
        """Yield the rows of all parts. Raises DataError, with the remedy, where a part cannot be downloaded."""
        import datasets

        for part in self.parts:
            repository = self.repository.format(part=part)
            config = None if repository != self.repository else part or None
            try:
                rows = datasets.load_dataset(repository, config, split=self.split)
            except Exception as error:  # Network, access and format errors of several packages.
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise DataError(
                    f"{repository}: {reason}\ndownload its files where there is a network (a gated set needs its terms "
                    "accepted) and give --from PATH"
                ) from error
            for number, row in enumerate(rows, 1):
                yield RowLocation(" ".join(filter(None, (repository, config))), number, "row"), part, row


def read_files(path: Path, pattern: str, problems: list[Problem]) -> SourceRows:
    """Yield the rows of a file, or of a directory's files that match. Adds what cannot be read to `problems`.

    Raises DataError where there is no file to read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    files = [path] if path.is_file() else sorted(p for p in path.rglob(pattern) if p.suffix in _SUFFIXES)
    if not files:
        raise DataError(f"{path}: no {pattern} of {', '.join(_SUFFIXES)} in it")
    for file in files:
        try:
            yield from _read_file(file, problems)
        except (OSError, ValueError, RecursionError, csv.Error, ArrowException) as error:
            problems.append((RowLocation(str(file)), f"not readable: {' '.join(str(error).split())}"))


def _read_file(path: Path, problems: list[Problem]) -> SourceRows:
    part = path.stem
    if path.suffix == ".jsonl":
        yield from ((location, part, row) for location, row in json_rows(path, problems))
        return
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix == ".csv":
        rows = iter(csv.DictReader(line for _, line in text_lines(path, problems)))
    elif path.suffix == ".json":
        part, rows = _rows_of_json(json.loads(read_text(path)), part)
    else:
        raise ValueError(f"supported formats are {', '.join(_SUFFIXES)}")
    for number, row in enumerate(rows, 1):
        location = RowLocation(str(path), number, "row")
        if reason := _problem_of(row):
            problems.append((location, reason))
        else:
            yield location, part, row


def _problem_of(row: Any) -> str:
    has_surplus_values = isinstance(row, dict) and None in row  # csv.DictReader keeps them under None.
    return "more values than the header has columns" if has_surplus_values else row_problem(row)


def _parquet_rows(path: Path) -> Iterator[Any]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _rows_of_json(content: Any, part: str) -> tuple[str, Iterator[Any]]:
    """Return the name of a JSON file's part, and its rows.

    The file holds a list of rows, or a task with `name` and `examples`. Each example gets the task's own texts. A task
    without `examples` has sub-tasks in other files.
    """
    if isinstance(content, list):
        return part, iter(content)
    if not isinstance(content, dict) or not ("examples" in content or "name" in content):
        raise ValueError("expected a list of rows or an object with `examples`")
    texts = {name: value for name, value in content.items() if isinstance(value, str)}
    examples = content.get("examples", [])
    if not isinstance(examples, list):
        raise ValueError(f"`examples` is a list of rows, not {json_type_name(examples)}")
    return texts.get("name", part), (texts | row if isinstance(row, dict) else row for row in examples)
