"""Multiple choice: the letter that a response ends with."""

from __future__ import annotations

import re
from typing import Any

from tempo_megatron.grading.final_answer import after_thinking, closing_boxes, last_line, stated

_MARKUP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|bf|rm|left|right)\b|[\\*_$`\"{}]")
_LETTER = r"\(?([A-Z])\)?(?![\w'\u2019])"
_NAMED = r"(?:(?:the )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer):? )?"
_LEADING = re.compile(rf"(?:[Ee]ither |[Bb]oth )?{_NAMED}(?!I [a-z]){_LETTER}")
_NEXT = re.compile(rf" ?(?:[,;/&]|,? ?\bor\b|,? ?\band\b) ?{_NAMED}{_LETTER}| ?\(([A-Z])\)")
_LOWER_CASE = re.compile(rf"{_NAMED}(?:\(([a-z])\)|([a-z])(?=[.:)]*$|[:)]))")
_PARENTHESISED = re.compile(r"\(([A-Za-z])\)")
_LABELLED_LINE = re.compile(
    rf"{_NAMED}(?:\(?[A-Za-z](?:[.:)]|$)|[A-Z] is (?:the )?(?:answer|best|correct|right))|(?:[Oo]ption|[Cc]hoice) "
)


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether the response ends with the right letter; `answer["answer"]` is the letter, or its index from 0."""
    return extract(text) == gold_letter(answer["answer"])


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    gold_letter(answer["answer"])


def extract(text: str) -> str:
    """The letter stated last, in upper case; "" for none, and for several different ones stated together."""
    text = after_thinking(text)
    boxes = closing_boxes(text)
    letters = {letter for box in boxes for letter in _letters(box)}
    if not boxes:
        said = (set(_letters(statement)) for statement in reversed(stated(text, choices=True)))
        letters = next(filter(None, said), set()) or set(_of_line(last_line(text)))
    return letters.pop() if len(letters) == 1 else ""


def gold_letter(answer: Any) -> str:
    """A label's letter: `2`, `"2"`, `"C"`, `"(c)"` and `"C."` are all C. Raises ValueError for anything else."""
    text = str(answer).strip(" ().:")
    if text.isdecimal() and int(text) < 26:
        return chr(ord("A") + int(text))
    if len(text) == 1 and text.isascii() and text.isalpha():
        return text.upper()
    raise ValueError(f"the answer to a multiple-choice question is a letter or an index from 0, not {answer!r}")


def _letters(statement: str) -> list[str]:
    plain = _plain(statement)
    found = _LEADING.match(plain)
    letters = []
    while found:
        letters += [letter for letter in found.groups() if letter]
        found = _NEXT.match(plain, found.end())
    if letters:
        return letters
    lower = _LOWER_CASE.match(plain)
    if lower:
        return [(lower.group(1) or lower.group(2)).upper()]
    return [letter.upper() for letter in _PARENTHESISED.findall(plain)]


def _of_line(line: str) -> list[str]:
    """Letters of a last line that has no "answer is": it starts with a label, or has one in parentheses."""
    plain = _plain(line)
    return _letters(plain) if _LABELLED_LINE.match(plain) else _PARENTHESISED.findall(plain)


def _plain(statement: str) -> str:
    """Without markup, and with single spaces."""
    return " ".join(_MARKUP.sub(" ", statement).replace("[", "(").replace("]", ")").split()).replace("( ", "(")
