"""What a source's row becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tempo_megatron.data.identity import identity, spoken
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.templates import Message


class SkippedRow(Exception):
    """A row that no question can be made of; the message says why."""


class SchemaError(DataError):
    """A row has not the fields of its source; the message names them and those that it has."""


@dataclass(frozen=True)
class Question:
    """One question: `prompt`, or `messages` that end with the user's turn. `answer` is None where the copy has none."""

    prompt: str
    answer: Any
    grader: str
    source: str
    id: str = ""
    messages: tuple[Message, ...] = ()
    metadata: Mapping[str, Any] | None = None
    """what a reasoning-gym scorer reads besides the answer"""

    @property
    def text(self) -> str:
        return spoken(self.messages) if self.messages else self.prompt

    @property
    def identity(self) -> str:
        return identity(self.text)

    @property
    def has_answer(self) -> bool:
        return self.answer not in (None, "") or self.metadata is not None

    def row(self) -> dict[str, Any]:
        """The normalised row. Without an id of the source's own, the id is a hash of the text, never of the answer."""
        asked = {"messages": list(self.messages)} if self.messages else {"prompt": self.prompt}
        row = {
            "id": self.id or text_hash(self.text),
            **asked,
            "answer": self.answer,
            "grader": self.grader,
            "source": self.source,
        }
        return row if self.metadata is None else {**row, "metadata": self.metadata}


def text_hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def field(row: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of the names that the row has. Raises SchemaError where it has none of them."""
    for name in names:
        if name in row:
            return row[name]
    raise SchemaError(f"a row needs {' or '.join(f'`{name}`' for name in names)}; it has {', '.join(map(str, row))}")


def text(row: Mapping[str, Any], *names: str) -> str:
    """Such a value as text without surrounding whitespace; empty where it is null."""
    value = field(row, *names)
    return "" if value is None else str(value).strip()


def lettered(options: Sequence[str]) -> str:
    """Options one a line, each with its letter: (A), (B), ..."""
    return "\n".join(f"({letter(index)}) {option}" for index, option in enumerate(options))


def letter(index: int) -> str:
    return chr(ord("A") + index)


def hashed_order(question: str, options: Sequence[str]) -> list[str]:
    """The options in an order that the question and their own texts decide, whichever of them is right."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{question}\x1f{option}".encode()).digest())
