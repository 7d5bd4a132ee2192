"""Checks labels that must be a text or a number."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""All control characters but tab, line feed and carriage return, which texts may hold."""


def label_text(answer: dict[str, Any]) -> str:
    """Returns the label as a text without surrounding blanks.

    Raises ValueError for a label that is neither a text nor a finite number, is empty, or holds a control character.
    """
    label = answer["answer"]
    if not isinstance(label, (str, int, float)):
        raise ValueError(f"a label is a text or a number, not {label!r:.80}")
    if isinstance(label, float) and not isfinite(label):
        raise ValueError(f"the label is {label}, not a number")
    text = str(label)
    if not text.strip():
        raise ValueError("the label is empty")
    if eaten := _CONTROL.search(text):  # before `strip`, which removes the form feed of an eaten \frac
        character = ascii(eaten.group())
        raise ValueError(f"the label {text!r:.80} holds the control character {character}: JSON wants \\\\ for \\")
    return text.strip()


def check_label_text(answer: dict[str, Any]) -> None:
    """Raises ValueError as `label_text` does: no response can be graded right against such a label."""
    label_text(answer)
