"""The grader `free`: answers as in BIG-Bench Hard.

An answer is an option, yes or no, a number, a list of words, or a row of brackets.
"""

from __future__ import annotations

import re
from typing import Any

from tempo_megatron.grading.answer_normalization import is_single_word, normalize_answer
from tempo_megatron.grading.answer_statements import (
    MAX_STATEMENT_CHARACTERS,
    closing_word_list,
    find_statements,
    last_line,
)
from tempo_megatron.grading.ascii_text import to_ascii
from tempo_megatron.grading.boxes import closing_boxes, last_box_start
from tempo_megatron.grading.label_text import label_text

# A row of brackets seldom balances, so braces cannot show where its box ends. The box ends with its line.
_BOXED_BRACKETS = re.compile(r"\\(?:boxed|fbox) ?\{([()\[\]{}<>\\ ]{1,500})\}[ .$\\)\]]{0,6}$", re.MULTILINE)


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Returns whether the normalized final answer equals the normalized text `answer["answer"]`."""
    final = extract(text)
    return bool(final) and final == normalize_answer(str(answer["answer"]))


def extract(text: str) -> str:
    """Returns the normalized final answer, "" if there is none.

    The answer is what is stated last ("Answer: X", a box), else the closing list, else the last line. Our
    instructions ask for a line "Answer: X". A box cannot overrule that line: if a later box has another answer, the
    response has no answer.
    """
    text = to_ascii(text)
    statements = find_statements(text)
    stated_answer = normalize_answer(statements[-1].text) if statements else ""
    boxed_answer = _boxed_answer(text)
    if boxed_answer is not None and (not statements or last_box_start(text) > statements[-1].start):
        agrees = stated_answer == boxed_answer or not statements or not statements[-1].on_answer_line
        return boxed_answer if agrees else ""
    if statements:
        return stated_answer
    word_list = closing_word_list(text)
    line = _unless_too_long(last_line(text))
    return normalize_answer(word_list if is_single_word(normalize_answer(line)) and word_list else line)


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    label = " ".join(label_text(answer).split())
    if not grade(f"Answer: {label}", answer):
        raise ValueError(f"the label {label!r:.80} is not graded right against itself")


def _boxed_answer(text: str) -> str | None:
    """Returns the normalized answer in the closing boxes; "" if they disagree; None if there is no box."""
    brackets = list(_BOXED_BRACKETS.finditer(text))
    if brackets and brackets[-1].start() == last_box_start(text):
        return normalize_answer(brackets[-1][1])
    answers = {normalize_answer(_unless_too_long(box)) for box in closing_boxes(text)}
    return None if not answers else min(answers) if len(answers) == 1 else ""


def _unless_too_long(statement: str) -> str:
    """Returns the statement; "" if it is too long to be an answer."""
    return statement if len(statement) <= MAX_STATEMENT_CHARACTERS else ""
