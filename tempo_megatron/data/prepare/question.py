"""A question made of a row of a public source, and the helpers that read such rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from types import NoneType
from typing import Any

from tempo_megatron.data.identity import conversation_text, normalize_question, text_hash
from tempo_megatron.data.reading import DataError, json_type_name
from tempo_megatron.data.templates import Message

NO_ANSWER = "no answer"
SEVERAL_OPTIONS = "no single right option"


class SkippedRow(Exception):
    """No question can be made of a row. The message says why."""


class SchemaError(DataError):
    """A row does not have the fields of its source. The message names the missing fields and the present ones."""


@dataclass(frozen=True)
class PreparedQuestion:
    """One question: `prompt`, or `messages` that end with the user's turn."""

    prompt: str
    answer: Any
    """None where this copy of the source has no answer."""
    grader: str
    source: str
    id: str = ""
    """The source's own id; empty without one."""
    messages: tuple[Message, ...] = ()
    metadata: Mapping[str, Any] | None = None
    """What a reasoning-gym scorer reads besides the answer."""
    unanswered: str = NO_ANSWER
    """The reason why `answer` is None."""

    @property
    def text(self) -> str:
        """The question's text, of all turns of a conversation but the system's."""
        return conversation_text(self.messages) if self.messages else self.prompt

    @property
    def normalized_text(self) -> str:
        """The text by which duplicates are recognized."""
        return normalize_question(self.text)

    @property
    def has_answer(self) -> bool:
        return self.answer not in (None, "") or self.metadata is not None

    @property
    def label(self) -> dict[str, Any]:
        """What the grader receives, in the form in which a run reads it from the row."""
        task_fields = {} if self.metadata is None else {"question": self.prompt, "metadata": self.metadata}
        return {"answer": self.answer, **task_fields}

    def row(self) -> dict[str, Any]:
        """Return the row to write. A question without an id gets a hash of its text, never of its answer."""
        question = {"messages": list(self.messages)} if self.messages else {"prompt": self.prompt}
        row = {
            "id": self.id or text_hash(self.text),
            **question,
            "answer": self.answer if self.has_answer else None,
            "grader": self.grader,
            "source": self.source,
        }
        return row if self.metadata is None else {**row, "metadata": self.metadata}


def required_value(row: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first name that the row has. Raises SchemaError where the row has none of the names."""
    if not isinstance(row, Mapping):
        raise SchemaError(f"{_quoted(names)} is a key of an object, not of {json_type_name(row)}")
    for name in names:
        if name in row:
            return row[name]
    raise SchemaError(f"a row needs {_quoted(names)}; it has {', '.join(map(str, row))}")


def required_text(row: Mapping[str, Any], *names: str) -> str:
    """Return the value of the first name that the row has, as `to_text` does."""
    return to_text(required_value(row, *names), _quoted(names))


def to_text(value: Any, name: str) -> str:
    """Return a value as text without surrounding whitespace; empty for null.

    Raises SchemaError, which contains `name`, for a value that is neither a text nor a finite number.
    """
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not isfinite(value)):
        raise SchemaError(f"{name} is a text or a number, not {json_type_name(value)}")
    return str(value).strip()


def to_list(value: Any, name: str) -> list[Any]:
    """Return a list as it is, and null as an empty list. Raises SchemaError, with `name`, for other values."""
    if not isinstance(value, (list, NoneType)):
        raise SchemaError(f"{name} is a list, not {json_type_name(value)}")
    return value or []


def format_options(options: Sequence[str]) -> str:
    """Return the options one a line, each with its letter: (A), (B) and so on."""
    return "\n".join(f"({option_letter(index)}) {option}" for index, option in enumerate(options))


def option_letter(index: int) -> str:
    """Return the letter of an option: A for index 0."""
    return chr(ord("A") + index)


def hashed_order(question: str, options: Sequence[str]) -> list[str]:
    """Return the options in an order that depends on their texts and the question, not on which one is right."""
    return sorted(options, key=lambda option: hashlib.sha256(f"{question}\x1f{option}".encode()).digest())


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)
