"""Decides when two questions are the same question."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def normalize_question(text: str) -> str:
    """Return the text with case folded and each run of whitespace as one space. Punctuation and word order stay.

    Two questions with the same normalized text are one question. Duplicates are dropped, evaluated questions are
    withheld and exact contamination is counted by it. Options in another order make another question.
    """
    return " ".join(text.casefold().split())


def question_key(text: str) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 of the normalized text. They stand for the question."""
    return hashlib.sha256(normalize_question(text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def text_hash(text: str) -> str:
    """Return the first 16 hexadecimal digits of the text's SHA-256: the id of a question that has none of its own."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def conversation_text(messages: Iterable[Mapping[str, str]]) -> str:
    """Return the question of a conversation: the content of all turns but the system's.

    A single user turn is therefore the same question as a prompt of the same text.
    """
    return "\n".join(turn["content"] for turn in messages if turn["role"] != "system")
