"""Text files and their rows as they are read, and what is wrong with them by file and row."""

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
    """A data file or task is not usable; the message lists file, row and reason, one problem a line."""


class RowLocation(NamedTuple):
    """A row of a file, or the file alone where `number` is 0. Numbers count from 1."""

    file: str
    number: int = 0
    unit: str = "line"
    """`line`, or `row` where a row may take several lines or none"""

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}" if self.number else self.file


Problem = tuple[RowLocation, str]
"""where, and what is wrong there"""


def listed(problems: Iterable[Problem]) -> list[str]:
    """One line for each reason in each file, with the numbers of its rows: the first ten, then how many more."""
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for place, reason in problems:
        numbers.setdefault((place.file, place.unit, reason), []).append(place.number)
    return [f"{_rows(file, unit, rows)}: {reason}" for (file, unit, reason), rows in numbers.items()]


def _rows(file: str, unit: str, numbers: list[int]) -> str:
    numbers = list(dict.fromkeys(numbers))
    if len(numbers) == 1:
        return str(RowLocation(file, numbers[0], unit))
    shown = [str(number) for number in numbers[:_NUMBERS_SHOWN]]
    last = f"{len(numbers) - _NUMBERS_SHOWN:,} more" if len(numbers) > _NUMBERS_SHOWN else shown.pop()
    return f"{file}, {unit}s {', '.join(shown)} and {last}"


def text_lines(path: Path, problems: list[Problem]) -> Iterator[tuple[RowLocation, str]]:
    """The lines of a UTF-8 file, each with its end; a byte order mark is left out.

    Only a line feed ends a line: texts may hold the further ends of `str.splitlines`. A file that is something else,
    and each line that is not UTF-8, is added to `problems`.
    """
    try:
        with path.open("rb") as file:
            first = file.read(_BLOCK)
            if kind := _other_kind(first):
                problems.append((RowLocation(str(path)), f"{kind}, not UTF-8 text"))
                return
            file.seek(len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0)
            for number, line in enumerate(file, 1):
                place = RowLocation(str(path), number)
                try:
                    yield place, line.decode()
                except UnicodeDecodeError:
                    problems.append((place, "not UTF-8: save the file as UTF-8"))
    except OSError as error:
        problems.append((RowLocation(str(path)), f"not readable: {error.strerror or error}"))


def _other_kind(first: bytes) -> str:
    """What a file is that begins so, where it is no text in UTF-8."""
    named = (kind for signature, kind in _SIGNATURES.items() if first.startswith(signature))
    return next(named, "UTF-16 text or binary" if b"\0" in first else "")


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, without a byte order mark. Raises DataError listing what cannot be read."""
    problems: list[Problem] = []
    text = "".join(line for _, line in text_lines(path, problems))
    if problems:
        raise DataError("\n".join(listed(problems)))
    return text


def json_rows(path: Path, problems: list[Problem]) -> Iterator[tuple[RowLocation, dict[str, Any]]]:
    """The objects of a JSONL file, one a line. Lines that hold anything else are added to `problems`."""
    empty = True
    for place, line in text_lines(path, problems):
        if not line.strip():
            continue
        empty = False
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # too many digits are a ValueError, too many brackets the other
            problems.append((place, f"not JSON: {getattr(error, 'msg', error)}"))
            continue
        if reason := no_row(row, may_be_cut=bool(_SURROGATE.search(line))):
            problems.append((place, reason))
        else:
            yield place, row
    if empty and not problems:
        problems.append((RowLocation(str(path)), "the data file is empty"))


def no_row(value: Any, may_be_cut: bool = True) -> str:
    r"""Why a JSON value is no row; empty where it is one. `may_be_cut`: its texts may hold escapes such as `\ud83d`."""
    if not isinstance(value, dict):
        return f"a row is an object of keys and values, not {json_type(value)}"
    if may_be_cut:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start]).strip("'")
            return f"half of a character ({half}): a text was cut inside a pair of surrogates"
    return ""


def json_type(value: Any) -> str:
    """What JSON calls the type of a value, or Python where JSON has no such type."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", NoneType: "null"}
    names |= dict.fromkeys((int, float), "a number")
    return names.get(type(value), f"a value of type {type(value).__name__}")
