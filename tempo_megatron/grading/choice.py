"""The grader `choice`: multiple-choice questions, graded by the letter that a response ends with."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tempo_megatron.grading.answer_statements import MAX_STATEMENT_CHARACTERS, find_statements, last_line
from tempo_megatron.grading.ascii_text import to_ascii
from tempo_megatron.grading.boxes import closing_boxes, last_box_start
from tempo_megatron.grading.option_letters import read_option_letters, without_markup

_LEAD = re.compile(
    r"[^\w(]*(?:(?:hence|therefore|thus|so|then|finally|overall|consequently|ok|in conclusion|it is|it's|it must be"
    r"|(?:that|this|which) leaves|only|i would say|i'd say|i say|i believe|i think)\b[, :]*)*",
    re.IGNORECASE,
)
_CALLED = r"(?:(?:the )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?"
_LABELED_LINE = re.compile(rf"{_CALLED}(?:\([A-Z]\)|[A-Z])(?:[.:)]|$| or | and | [-\u2013] |,|/| ?\()")
_CALLED_RIGHT = re.compile(
    rf"{_CALLED}(?:\([A-Z]\)|[A-Z]),? (?:(?:is|was|must be|would be|should be|seems|looks)(?: \w+ly)?"
    r" (?:the |our |my )?(?:\w+ )?(?:answer|best|correct|right|true|one|choice|option)"
    r"|matches|fits|works|holds|it is$)\b"
    r"|(?:\u9009\u9879)?[A-Z]\u662f?\u6b63\u786e"
)
_SENTENCE_END = re.compile(r"[.!?] ")
_PARENTHESIZED = re.compile(r"(?<!\w)\(([A-Z])\)")
_NEGATION = re.compile(
    r"n't\b|\b(?:not|no|never|neither|cannot|wrong|incorrect|eliminated?|excluded?|except|unlike|maybe"
    r"|perhaps|possibly|might|may|could)\b",
    re.I,
)


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Returns whether the response ends with the right letter. `answer["answer"]` is the letter or its index from 0."""
    return extract(text) == gold_letter(answer["answer"])


def extract(text: str) -> str:
    """Returns the letter stated last, in upper case; "" if there is none or if several letters are stated together.

    Our instructions ask for a line "Answer: X". A box cannot overrule that line: if a later box has another letter,
    the response has no answer.
    """
    text = to_ascii(text)
    claim = _last_claim(text)
    boxed = frozenset[str]().union(
        *(read_option_letters(box[:MAX_STATEMENT_CHARACTERS]).claimed for box in closing_boxes(text))
    )
    if boxed and last_box_start(text) > claim.start:
        letters = boxed - claim.denied if boxed == claim.letters or not claim.on_answer_line else frozenset()
    elif claim.letters or claim.denied:
        letters = claim.letters - claim.denied
    else:
        letters = _letters_of_last_line(last_line(text))
    return min(letters) if len(letters) == 1 else ""


def gold_letter(answer: Any) -> str:
    """Returns a label's letter: `2`, `"2"`, `"C"`, `"(c)"` and `"C."` are all C. Raises ValueError for other labels."""
    text = without_markup(to_ascii(str(answer))).strip(" ().:") if isinstance(answer, str | int) else ""
    if text.isdecimal() and int(text) < 26:
        return chr(ord("A") + int(text))
    if len(text) == 1 and text.isascii() and text.isalpha():
        return text.upper()
    raise ValueError(f"the answer to a multiple-choice question is a letter or an index from 0, not {answer!r}")


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    gold_letter(answer["answer"])


class _Claim(NamedTuple):
    """The letters of the last statement that claims any."""

    letters: frozenset[str]
    denied: frozenset[str]
    """The letters that later statements deny."""
    start: int
    on_answer_line: bool


def _last_claim(text: str) -> _Claim:
    """Returns the last statement that claims letters. If none does, `letters` is empty and `start` is -1."""
    denied: frozenset[str] = frozenset()
    for statement in reversed(find_statements(text, choices=True)):
        letters = read_option_letters(statement.text)
        if letters.claimed:
            return _Claim(letters.claimed, denied, statement.start, statement.on_answer_line)
        denied |= letters.denied
    return _Claim(frozenset(), denied, -1, False)


def _letters_of_last_line(line: str) -> frozenset[str]:
    """Returns the letters that a last line without "answer is" claims.

    The line begins with a label ("C) 12"), or it or its last sentence says "C is right". Otherwise its letters in
    parentheses count.
    """
    end = line[-MAX_STATEMENT_CHARACTERS:]
    plain = _without_lead(line[:MAX_STATEMENT_CHARACTERS])
    if len(line) <= MAX_STATEMENT_CHARACTERS and (_CALLED_RIGHT.match(plain) or _LABELED_LINE.match(plain)):
        return read_option_letters(plain).claimed
    sentence = _without_lead(_SENTENCE_END.split(end.rstrip(" .!"))[-1])
    if _CALLED_RIGHT.match(sentence):
        return read_option_letters(sentence).claimed
    return frozenset() if _NEGATION.search(end) else frozenset(_PARENTHESIZED.findall(without_markup(end)))


def _without_lead(sentence: str) -> str:
    return without_markup(_LEAD.sub("", without_markup(sentence), count=1))
