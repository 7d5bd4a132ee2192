"""Labels that are one text or number."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""all but tab, line feed and carriage return, which texts may hold"""


def plain_label(answer: dict[str, Any]) -> str:
    """The label as a text without blanks around it.

    Raises ValueError for a label that is no text and no finite number, is empty, or holds a control character.
    """
    label = answer["answer"]
    if not isinstance(label, (str, int, float)):
        raise ValueError(f"a label is a text or a number, not {label!r:.80}")
    if isinstance(label, float) and not isfinite(label):
        raise ValueError(f"the label is {label}, no number")
    text = str(label)
    if not text.strip():
        raise ValueError("the label is empty")
    if eaten := _CONTROL.search(text):  # before blanks are stripped: form feeds, eaten from \frac, are blanks
        character = ascii(eaten.group())
        raise ValueError(f"the label {text!r:.80} holds the control character {character}: JSON wants \\\\ for \\")
    return text.strip()


def check_plain_label(answer: dict[str, Any]) -> None:
    """Raises as `plain_label` does: no response can be graded right against such a label."""
    plain_label(answer)
