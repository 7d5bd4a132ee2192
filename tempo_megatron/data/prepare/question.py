"""What a source's row becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from types import NoneType
from typing import Any

from tempo_megatron.data.identity import identity, spoken
from tempo_megatron.data.reading import DataError, json_type
from tempo_megatron.data.templates import Message

NO_ANSWER = "no answer"
SEVERAL_OPTIONS = "no single right option"


class SkippedRow(Exception):
    """A row that no question can be made of; the message says why."""


class SchemaError(DataError):
    """A row has not the fields of its source; the message names them and those that it has."""


@dataclass(frozen=True)
class PreparedQuestion:
    """One question: `prompt`, or `messages` that end with the user's turn. `answer` is None where the copy has none."""

    prompt: str
    answer: Any
    grader: str
    source: str
    id: str = ""
    messages: tuple[Message, ...] = ()
    metadata: Mapping[str, Any] | None = None
    """what a reasoning-gym scorer reads besides the answer"""
    unanswered: str = NO_ANSWER
    """why, where `answer` is None"""

    @property
    def text(self) -> str:
        return spoken(self.messages) if self.messages else self.prompt

    @property
    def identity(self) -> str:
        return identity(self.text)

    @property
    def has_answer(self) -> bool:
        return self.answer not in (None, "") or self.metadata is not None

    @property
    def label(self) -> dict[str, Any]:
        """What the grader is given, as a run reads it from the row."""
        entry = {} if self.metadata is None else {"question": self.prompt, "metadata": self.metadata}
        return {"answer": self.answer, **entry}

    def row(self) -> dict[str, Any]:
        """The normalized row. Without an id of the source's own, the id is a hash of the text, never of the answer."""
        asked = {"messages": list(self.messages)} if self.messages else {"prompt": self.prompt}
        row = {
            "id": self.id or text_hash(self.text),
            **asked,
            "answer": self.answer if self.has_answer else None,
            "grader": self.grader,
            "source": self.source,
        }
        return row if self.metadata is None else {**row, "metadata": self.metadata}


def text_hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def field(row: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of the names that the row has. Raises SchemaError where it has none of them."""
    if not isinstance(row, Mapping):
        raise SchemaError(
            f"{' or '.join(f'`{name}`' for name in names)} is a key of an object, not of {json_type(row)}"
        )
    for name in names:
        if name in row:
            return row[name]
    raise SchemaError(f"a row needs {' or '.join(f'`{name}`' for name in names)}; it has {', '.join(map(str, row))}")


def text(row: Mapping[str, Any], *names: str) -> str:
    """Such a value as text without surrounding whitespace; empty where it is null.

    Raises SchemaError for a value that is neither a text nor a finite number.
    """
    return plain(field(row, *names), " or ".join(f"`{name}`" for name in names))


def plain(value: Any, name: str) -> str:
    """A value as text, as `text` does; `name` says in the error which one it is."""
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not isfinite(value)):
        raise SchemaError(f"{name} is a text or a number, not {json_type(value)}")
    return str(value).strip()


def entries(value: Any, name: str) -> list[Any]:
    """A value that must be a list; empty where it is null. Raises SchemaError for another value."""
    if not isinstance(value, (list, NoneType)):
        raise SchemaError(f"{name} is a list, not {json_type(value)}")
    return value or []


def lettered(options: Sequence[str]) -> str:
    """Options one a line, each with its letter: (A), (B), ..."""
    return "\n".join(f"({letter(index)}) {option}" for index, option in enumerate(options))


def letter(index: int) -> str:
    return chr(ord("A") + index)


def hashed_order(question: str, options: Sequence[str]) -> list[str]:
    """The options in an order that the question and their own texts decide, whichever of them is right."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{question}\x1f{option}".encode()).digest())
