"""Free answers as BIG-Bench Hard asks for: an option, yes or no, a number, a list of words, a row of brackets."""

from __future__ import annotations

import re
from typing import Any

from tempo_megatron.grading.answer_forms import is_word, normalize
from tempo_megatron.grading.characters import in_ascii
from tempo_megatron.grading.final_answer import closing_boxes, last_line
from tempo_megatron.grading.plain_labels import plain_label
from tempo_megatron.grading.statements import LONGEST, closing_items, statements

_BOX = re.compile(r"\\(?:boxed|fbox)\b")
# A row of brackets seldom balances, so the braces of LaTeX cannot say where its box ends: the line does.
_BOXED_BRACKETS = re.compile(r"\\(?:boxed|fbox) ?\{([()\[\]{}<>\\ ]{1,500})\}[ .$\\)\]]{0,6}$", re.MULTILINE)


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether the response's final answer is `answer["answer"]`, a text, when both are normalized."""
    final = extract(text)
    return bool(final) and final == normalize(str(answer["answer"]))


def extract(text: str) -> str:
    """The final answer, normalized: what is stated last ("Answer: X", a box), else the closing list or the last line.

    "" for none. The line "Answer: X" that our instruction asks for is not overruled by a box: where a later box has
    something else, the response has no answer.
    """
    text = in_ascii(text)
    stated = statements(text)
    said = normalize(stated[-1].text) if stated else ""
    boxed = _boxed(text)
    if boxed is not None and (not stated or _last_box(text) > stated[-1].start):
        return boxed if said == boxed or not stated or not stated[-1].on_answer_line else ""
    if stated:
        return said
    listed = closing_items(text)
    line = _whole(last_line(text))
    return normalize(listed if is_word(normalize(line)) and listed else line)


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    label = " ".join(plain_label(answer).split())
    if not grade(f"Answer: {label}", answer):
        raise ValueError(f"the label {label!r:.80} is not graded right against itself")


def _boxed(text: str) -> str | None:
    """What the closing boxes say; "" where they disagree; None without a box."""
    brackets = list(_BOXED_BRACKETS.finditer(text))
    if brackets and brackets[-1].start() == _last_box(text):
        return normalize(brackets[-1][1])
    boxes = {normalize(_whole(box)) for box in closing_boxes(text)}
    return None if not boxes else min(boxes) if len(boxes) == 1 else ""


def _whole(statement: str) -> str:
    """The statement, or nothing of one that is too long to be an answer."""
    return statement if len(statement) <= LONGEST else ""


def _last_box(text: str) -> int:
    return max((box.start() for box in _BOX.finditer(text)), default=-1)
