"""Where a response to a choice or a free question states its answer. Every function takes time linear in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

LONGEST = 500
"""characters of a statement; nothing longer is an answer"""
_MARKUP = "*_`\"' "

# "Answer" as chat models write it, in English and before a colon in other languages.
_FOREIGN = (
    "ans|antwort|antwoord|svar|réponse|reponse|respuesta|risposta|resposta|odpowiedź|odpověď|cevap|jawaban|đáp án|ответ"
    "|відповідь|الإجابة|الجواب|उत्तर|উত্তর|정답|답변|답|答え|回答|解答|最终答案"
)
_LETTERS_BEFORE = r"(?<![^\W_])"
_NOT_THE_WRONG = "".join(
    f"(?<!{word} )"
    for word in ("wrong", "incorrect", "other", "another", "false", "bad", "worst", "tempting", "second.best")
)
_STATES = r"[^.\n:=]{0,60}?(?:\b(?:is|are|be|was)\b|[:=→]|[-=]>)"
_DASH = r"[*_ ]{0,4}[-\u2013\u2014](?= )"
_ENGLISH = rf"{_NOT_THE_WRONG}{_LETTERS_BEFORE}answers?\b(?:{_DASH}|{_STATES})"
_OTHER_LANGUAGE = (
    rf"{_LETTERS_BEFORE}(?:{_FOREIGN})(?:[*_ ]{{0,4}}:|(?: [^\W\d_]{{1,12}}){{0,3}} (?:es|est|ist|è|é|jest|adalah)\b)"
)
_CHINESE = r"(?<![不非])答案?\]?(?:应该|应当|应)?(?:是|为|选|:|(?<=\]))[ :]{0,3}"
_ANSWER = re.compile(
    rf"(?:{_ENGLISH}|{_OTHER_LANGUAGE}|{_CHINESE})[ *:_`\"']{{0,12}}(?P<line_end>\s{{0,8}}\n)?", re.IGNORECASE
)
_HEADING = re.compile(r"^[ #*_>]{0,8}(?:final |correct )?answer[ *_]{0,8}\n", re.IGNORECASE | re.MULTILINE)

_CHOSEN = r"(?:correct|right|best|final|proper|chosen|selected|appropriate|suitable|only|remaining|my|our)"
_OPTION = re.compile(
    rf"(?<!second )(?<!second-)(?<!next )(?<!next-)(?:\b{_CHOSEN} (?:answer )?|^[ #*_>]{{0,8}})(?:option|choice)\b"
    rf"{_STATES}"
    r"|\banswer (?:choice|option)s?(?= \W{0,4}[A-Z]\b)"
    r"|\b(?:I|we)(?: would| will| shall| must| should| can|'d|'ll)?(?: (?:therefore|thus|hence|finally|now))?"
    r" (?:choose|chose|pick|picked|select|selected|go with|went with|going with|opt for|settle on)\b"
    r"|(?<![不别非挑筛])(?:故|应|该|因此)?选(?:择|项)?[是为: ]{0,3}(?=\W{0,4}[A-Za-z](?![A-Za-z]))",
    re.IGNORECASE | re.MULTILINE,
)
_TAGGED = re.compile(rf"<answer>((?:(?!</?answer>).){{0,{LONGEST}}})</answer>", re.IGNORECASE | re.DOTALL)

_BEFORE = 40
_HEDGES = re.compile(r"\b(?:might|could|may|possibly|perhaps|maybe)\b", re.IGNORECASE)
_DENIES = re.compile(r"n't\b|\b(?:not|never|cannot)\b", re.IGNORECASE)
_UNSURE = re.compile(
    r"(?:n't|\b(?:not|never|doubt|if|unless|whether|suppose|assume|assuming|why|maybe|perhaps|possibly))\b"
    r"[^.,;:?!\n]*$",
    re.I,
)
_LINE_START = re.compile(r"(?:^|\n)[ #*_>`\"'-]*(?:(?:my|the|so|final|correct|最终|正确|最终的) ?)*$", re.IGNORECASE)
_ITEM = re.compile(r" *(?:[-*•+]|\d{1,3}[.)])? *([^\W\d_][\w'-]*)[,;.]? *")


class Statement(NamedTuple):
    """What a response says its answer is."""

    text: str
    start: int
    on_answer_line: bool
    """whether a line "Answer: X" says it, which our instructions ask for"""


def statements(text: str, choices: bool = False) -> list[Statement]:
    """What follows each "answer is", "Answer:" and their like, or stands in answer tags, first to last.

    Each reaches to its line's end, and no further than 500 characters. With `choices` also what follows "the correct
    option is" and "I choose". Conditions and guesses ("if the answer is", "the answer might be") state nothing.
    """
    stated = list(_anchored(text, _ANSWER)) + list(_anchored(text, _HEADING))
    if choices:
        stated += _anchored(text, _OPTION)
    stated += [Statement(joined_items(tag[1].strip()), tag.start(), False) for tag in _TAGGED.finditer(text)]
    return sorted((statement for statement in stated if statement.text), key=attrgetter("start"))


def answer_anchors(text: str) -> list[re.Match[str]]:
    """Each "answer is", "Answer:" and heading "Answer" that is no condition, guess or wrong answer, first to last."""
    anchors = [anchor for pattern in (_ANSWER, _HEADING) for anchor in _without_guesses(text, pattern)]
    return sorted(anchors, key=lambda anchor: anchor.end())


def _without_guesses(text: str, anchor: re.Pattern[str]) -> Iterator[re.Match[str]]:
    for match in anchor.finditer(text):
        before = text[max(0, match.start() - _BEFORE) : match.start()]
        if not _UNSURE.search(before) and not _HEDGES.search(match.group()):
            yield match


def _anchored(text: str, anchor: re.Pattern[str]) -> Iterator[Statement]:
    for match in _without_guesses(text, anchor):
        before = text[max(0, match.start() - _BEFORE) : match.start()]
        rest = text[match.end() : match.end() + LONGEST]
        begins_line = match.group().endswith("\n") or rest.lstrip(_MARKUP).startswith("\n")
        said = joined_items(rest.strip().partition("\n\n")[0]) if begins_line else rest.partition("\n")[0]
        on_line = ":" in match.group() and bool(
            _LINE_START.search(before if match.start() > _BEFORE else f"\n{before}")
        )
        said = f"not {said.strip()}" if _DENIES.search(match.group()) else said.strip()
        yield Statement(said, match.start(), on_line)


def joined_items(paragraph: str) -> str:
    """The words of a paragraph that is a list, one word a line; the first line of any other."""
    lines = paragraph.split("\n")
    items = [_ITEM.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(items):
        return " ".join(item[1] for item in items if item)
    return lines[0].strip()


def closing_items(text: str) -> str:
    """The words of the list, one word a line, that ends the text; "" where no list of two or more does."""
    items: list[str] = []
    for line in reversed(text.rstrip().split("\n")):
        item = _ITEM.fullmatch(line)
        if not item:
            break
        items.insert(0, item[1])
    return " ".join(items) if len(items) > 1 else ""
