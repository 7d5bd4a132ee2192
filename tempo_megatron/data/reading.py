"""Reads text files and their rows, and reports problems by file and row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

_SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard",
    b"\xfd7zXZ": "compressed by xz",
    b"PK\x03\x04": "a zip archive",
    codecs.BOM_UTF16_LE: "UTF-16 text",
    codecs.BOM_UTF16_BE: "UTF-16 text",
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLOCK = 4096
_NUMBERS_SHOWN = 10


class DataError(ValueError):
    """A data file or task is not usable. The message has one line a problem, with file, row and reason."""


class RowLocation(NamedTuple):
    """A row of a file, or the file as a whole."""

    file: str
    number: int = 0
    """The row's number, from 1; 0 for the file as a whole."""
    unit: str = "line"
    """`line`, or `row` in formats whose rows are not lines."""

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}" if self.number else self.file


Problem = tuple[RowLocation, str]
"""The location of a problem, and the reason."""


def format_problems(problems: Iterable[Problem]) -> list[str]:
    """Return one line for each reason in each file, with the numbers of its first ten rows and how many follow."""
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for location, reason in problems:
        numbers.setdefault((location.file, location.unit, reason), []).append(location.number)
    return [f"{_format_rows(file, unit, rows)}: {reason}" for (file, unit, reason), rows in numbers.items()]


def _format_rows(file: str, unit: str, numbers: list[int]) -> str:
    numbers = list(dict.fromkeys(numbers))
    if len(numbers) == 1:
        return str(RowLocation(file, numbers[0], unit))
    first_numbers = [str(number) for number in numbers[:_NUMBERS_SHOWN]]
    last = f"{len(numbers) - _NUMBERS_SHOWN:,} more" if len(numbers) > _NUMBERS_SHOWN else first_numbers.pop()
    return f"{file}, {unit}s {', '.join(first_numbers)} and {last}"


def text_lines(path: Path, problems: list[Problem]) -> Iterator[tuple[RowLocation, str]]:
    """Yield the lines of a UTF-8 file with their line feeds, without a byte order mark.

    Only a line feed ends a line: texts may contain the other line ends of `str.splitlines`. A file in another format,
    and each line that is not UTF-8, is added to `problems`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_BLOCK)
            if other_format := _other_format(head):
                problems.append((RowLocation(str(path)), f"{other_format}, not UTF-8 text"))
                return
            file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
            for number, line in enumerate(file, 1):
                location = RowLocation(str(path), number)
                try:
                    yield location, line.decode()
                except UnicodeDecodeError:
                    problems.append((location, "not UTF-8: save the file as UTF-8"))
    except OSError as error:
        problems.append((RowLocation(str(path)), f"not readable: {error.strerror or error}"))


def _other_format(head: bytes) -> str:
    """Return the format of a file by its first bytes; empty for UTF-8 text."""
    formats = (name for signature, name in _SIGNATURES.items() if head.startswith(signature))
    return next(formats, "UTF-16 text or binary" if b"\0" in head else "")


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. Raises DataError listing what cannot be read."""
    problems: list[Problem] = []
    text = "".join(line for _, line in text_lines(path, problems))
    if problems:
        raise DataError("\n".join(format_problems(problems)))
    return text


def json_rows(path: Path, problems: list[Problem]) -> Iterator[tuple[RowLocation, dict[str, Any]]]:
    """Yield the objects of a JSONL file, one a line. Adds lines with anything else to `problems`."""
    empty = True
    for location, line in text_lines(path, problems):
        if not line.strip():
            continue
        empty = False
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # Too many digits are a ValueError, too many brackets the other.
            problems.append((location, f"not JSON: {getattr(error, 'msg', error)}"))
            continue
        if reason := row_problem(row, check_surrogates=bool(_SURROGATE.search(line))):
            problems.append((location, reason))
        else:
            yield location, row
    if empty and not problems:
        problems.append((RowLocation(str(path)), "the data file is empty"))


def row_problem(value: Any, check_surrogates: bool = True) -> str:
    r"""Return why a JSON value is no row; empty for a row.

    `check_surrogates` looks for half a surrogate pair, such as `\ud83d` alone, which no UTF-8 file can hold.
    """
    if not isinstance(value, dict):
        return f"a row is an object of keys and values, not {json_type_name(value)}"
    if check_surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start]).strip("'")
            return f"half of a character ({half}): a text was cut inside a pair of surrogates"
    return ""


def json_type_name(value: Any) -> str:
    """Return JSON's name for the type of a value, or Python's where JSON has none."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", NoneType: "null"}
    names |= dict.fromkeys((int, float), "a number")
    return names.get(type(value), f"a value of type {type(value).__name__}")
