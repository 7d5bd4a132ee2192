"""When two questions are the same question."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def identity(text: str) -> str:
    """The text with case folded and every run of whitespace as one space; punctuation and word order are kept.

    Two questions with one identity are one question: duplicates are dropped by it, evaluated questions are withheld
    by it, and exact contamination is counted by it. Options in another order make another question.
    """
    return " ".join(text.casefold().split())


def key(text: str) -> str:
    """16 hexadecimal digits that stand for a question: a hash of its identity."""
    return hashlib.sha256(identity(text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def spoken(messages: Iterable[Mapping[str, str]]) -> str:
    """The question of a conversation: what is said in it, without system messages.

    A single user's turn is therefore the same question as a prompt of the same text.
    """
    return "\n".join(turn["content"] for turn in messages if turn["role"] != "system")
