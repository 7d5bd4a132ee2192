"""Multiple choice: the letter that a response ends with."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tempo_megatron.grading.characters import in_ascii
from tempo_megatron.grading.final_answer import closing_boxes, last_line
from tempo_megatron.grading.options import read, without_markup
from tempo_megatron.grading.statements import LONGEST, statements

_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_LEAD = re.compile(
    r"[^\w(]*(?:(?:hence|therefore|thus|so|then|finally|overall|consequently|ok|in conclusion|it is|it's|it must be"
    r"|(?:that|this|which) leaves|only|i would say|i'd say|i say|i believe|i think)\b[, :]*)*",
    re.IGNORECASE,
)
_NAMED = r"(?:(?:the )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?"
_LABELED_LINE = re.compile(rf"{_NAMED}(?:\([A-Z]\)|[A-Z])(?:[.:)]|$| or | and | [-\u2013] |,|/| ?\()")
_SAID_RIGHT = re.compile(
    rf"{_NAMED}(?:\([A-Z]\)|[A-Z]),? (?:(?:is|was|must be|would be|should be|seems|looks)(?: \w+ly)?"
    r" (?:the |our |my )?(?:\w+ )?(?:answer|best|correct|right|true|one|choice|option)"
    r"|matches|fits|works|holds|it is$)\b"
    r"|(?:\u9009\u9879)?[A-Z]\u662f?\u6b63\u786e"
)
_SENTENCE_END = re.compile(r"[.!?] ")
_PARENTHESISED = re.compile(r"(?<!\w)\(([A-Z])\)")
_NEGATION = re.compile(
    r"n't\b|\b(?:not|no|never|neither|cannot|wrong|incorrect|eliminated?|excluded?|except|unlike|maybe"
    r"|perhaps|possibly|might|may|could)\b",
    re.I,
)


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether the response ends with the right letter; `answer["answer"]` is the letter, or its index from 0."""
    return extract(text) == gold_letter(answer["answer"])


def extract(text: str) -> str:
    """The letter stated last, in upper case; "" for none, and for several different ones stated together.

    The line "Answer: X" that our instruction asks for is not overruled by a box: where a later box has another letter,
    the response has no answer.
    """
    text = in_ascii(text)
    claim = _last_claim(text)
    boxed = frozenset[str]().union(*(read(box[:LONGEST]).claimed for box in closing_boxes(text)))
    if boxed and _last_box(text) > claim.start:
        letters = boxed - claim.denied if boxed == claim.letters or not claim.on_answer_line else frozenset()
    elif claim.letters or claim.denied:
        letters = claim.letters - claim.denied
    else:
        letters = _of_line(last_line(text))
    return min(letters) if len(letters) == 1 else ""


def gold_letter(answer: Any) -> str:
    """A label's letter: `2`, `"2"`, `"C"`, `"(c)"` and `"C."` are all C. Raises ValueError for anything else."""
    text = without_markup(in_ascii(str(answer))).strip(" ().:") if isinstance(answer, str | int) else ""
    if text.isdecimal() and int(text) < 26:
        return chr(ord("A") + int(text))
    if len(text) == 1 and text.isascii() and text.isalpha():
        return text.upper()
    raise ValueError(f"the answer to a multiple-choice question is a letter or an index from 0, not {answer!r}")


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    gold_letter(answer["answer"])


class _Claim(NamedTuple):
    letters: frozenset[str]
    denied: frozenset[str]
    """by what follows the claim"""
    start: int
    on_answer_line: bool


def _last_claim(text: str) -> _Claim:
    """The last statement that claims letters; without letters, and from -1, where none does."""
    denied: frozenset[str] = frozenset()
    for statement in reversed(statements(text, choices=True)):
        reading = read(statement.text)
        if reading.claimed:
            return _Claim(reading.claimed, denied, statement.start, statement.on_answer_line)
        denied |= reading.denied
    return _Claim(frozenset(), denied, -1, False)


def _last_box(text: str) -> int:
    return max((box.start() for box in _BOX.finditer(text)), default=-1)


def _of_line(line: str) -> frozenset[str]:
    """Letters of a last line that has no "answer is".

    It begins with a label ("C) 12"), it or its last sentence says "C is right", or it has a letter in parentheses.
    """
    end = line[-LONGEST:]
    plain = _without_lead(line[:LONGEST])
    if len(line) <= LONGEST and (_SAID_RIGHT.match(plain) or _LABELED_LINE.match(plain)):
        return read(plain).claimed
    sentence = _without_lead(_SENTENCE_END.split(end.rstrip(" .!"))[-1])
    if _SAID_RIGHT.match(sentence):
        return read(sentence).claimed
    return frozenset() if _NEGATION.search(end) else frozenset(_PARENTHESISED.findall(without_markup(end)))


def _without_lead(sentence: str) -> str:
    return without_markup(_LEAD.sub("", without_markup(sentence), count=1))
