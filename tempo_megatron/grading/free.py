"""Free answers as BIG-Bench Hard asks for: an option, yes or no, a number, a list of words, a row of brackets."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from tempo_megatron.grading.final_answer import after_thinking, closing_boxes, last_line, stated
from tempo_megatron.grading.plain_labels import plain_label

_MARKUP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|rm|bf)\b|[*$`\"“”]|(?<!\w)'|'(?!\w)")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")
_OPTION = re.compile(r"\(([a-z])\)(?! ?(?:,? ?(?:or|and)\b|[,/;&]|\([a-z]\)))|([a-z])[.:)]?$")
_DECISION = re.compile(r"(yes|no|true|false|valid|invalid)\b(?! ?(?:or|and|/))")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether the response's final answer is `answer["answer"]`, a text, when both are normalised."""
    found = extract(text)
    return bool(found) and found == normalise(str(answer["answer"]))


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    label = plain_label(answer)
    if not grade(f"Answer: {label}", answer):
        raise ValueError(f"the label {label!r:.80} is not graded right against itself")


def extract(text: str) -> str:
    """The final answer, normalised: the closing box, else what follows the last "answer is", else the last line."""
    text = after_thinking(text)
    boxes = {normalise(box) for box in closing_boxes(text)}
    if boxes:
        return ", ".join(sorted(boxes))
    said = [statement for statement in stated(text) if statement]
    return normalise(said[-1] if said else last_line(text))


def normalise(text: str) -> str:
    """Lower case, single spaces, no markup, no full stop, commas as spaces.

    "(A) because ..." is (a), "Yes, since ..." is yes, 1,234.0 is 1234, and brackets stand without spaces.
    """
    plain = _IN_BRACES.sub(_without_braces, _MARKUP.sub("", text))
    plain = " ".join(plain.lower().split()).rstrip(" .!").removeprefix("the answer is ")
    option = _OPTION.match(plain)
    if option:
        return f"({option.group(1) or option.group(2)})"
    decision = _DECISION.match(plain)
    if decision:
        return decision.group(1)
    number = _NUMBER.fullmatch(plain)
    if number and any(map(str.isdigit, plain)):
        return _number(plain)
    if not any(map(str.isalnum, plain)):
        return plain.replace(" ", "")
    listed = plain[1:-1] if plain.startswith("[") and plain.endswith("]") else plain
    return " ".join(listed.replace(",", " ").split())


def _without_braces(match: re.Match[str]) -> str:
    """LaTeX's braces around words go; a row of brackets keeps its own."""
    return match.group(1) if any(map(str.isalnum, match.group(1))) else match.group()


def _number(text: str) -> str:
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    return format(value.normalize(), "f") if value else "0"
