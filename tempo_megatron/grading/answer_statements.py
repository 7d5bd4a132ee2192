"""The statements of prose that name a final answer: "the answer is", "Answer:" and the like.

The graders `choice` and `free` read them by `find_statements`, `math` by `stated_lines`. Every function takes time
linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

MAX_STATEMENT_CHARACTERS = 500
"""Number of characters that are read of a statement. A longer statement is no answer."""
_MARKUP = "*_`\"' "

# The word "answer" as chat models write it: in English, and before a colon in other languages.
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
_TAGGED = re.compile(
    rf"<answer>((?:(?!</?answer>).){{0,{MAX_STATEMENT_CHARACTERS}}})</answer>", re.IGNORECASE | re.DOTALL
)

_CHARACTERS_BEFORE = 40
_HEDGED = re.compile(r"\b(?:might|could|may|possibly|perhaps|maybe)\b", re.IGNORECASE)
_DENIED = re.compile(r"n't\b|\b(?:not|never|cannot)\b", re.IGNORECASE)
_UNSURE = re.compile(
    r"(?:n't|\b(?:not|never|doubt|if|unless|whether|suppose|assume|assuming|why|maybe|perhaps|possibly))\b"
    r"[^.,;:?!\n]*$",
    re.I,
)
_DISPLAY_START = re.compile(r"^(?:\s|\\\[(?=\s)|\$\$(?=\s))+")
_LINE_START = re.compile(r"(?:^|\n)[ #*_>`\"'-]*(?:(?:my|the|so|final|correct|最终|正确|最终的) ?)*$", re.IGNORECASE)
_ITEM = re.compile(r" *(?:[-*•+]|\d{1,3}[.)])? *([^\W\d_][\w'-]*)[,;.]? *")


class Statement(NamedTuple):
    """What a response says that its answer is, and where."""

    text: str
    start: int
    on_answer_line: bool
    """Whether it is a line "Answer: X", which our instructions ask for."""


def find_statements(text: str, choices: bool = False) -> list[Statement]:
    """Returns what follows each "answer is", "Answer:" and the like, or stands in answer tags, first to last.

    A statement ends with its line, or after 500 characters. With `choices`, phrases such as "the correct option is"
    and "I choose" count too. Conditions and guesses ("if the answer is", "the answer might be") state nothing.
    """
    statements = list(_statements_after(text, _ANSWER)) + list(_statements_after(text, _HEADING))
    if choices:
        statements += _statements_after(text, _OPTION)
    statements += [Statement(_joined_words(tag[1].strip()), tag.start(), False) for tag in _TAGGED.finditer(text)]
    return sorted((statement for statement in statements if statement.text), key=attrgetter("start"))


def stated_lines(text: str) -> list[str]:
    """Returns the line after each "answer is", "Answer:" or heading "Answer", first to last.

    A line has at most 500 characters. Where "answer" is a heading, the line is the next one that is not blank. The
    start of a display formula is left out. A denial ("the answer cannot be") gives "".
    """
    anchors = [anchor for pattern in (_ANSWER, _HEADING) for anchor in _certain_anchors(text, pattern)]
    anchors.sort(key=lambda anchor: anchor.end())
    return ["" if _DENIED.search(anchor.group()) else _line_after(text, anchor.end()) for anchor in anchors]


def _line_after(text: str, start: int) -> str:
    following = _DISPLAY_START.sub("", text[start : start + MAX_STATEMENT_CHARACTERS])
    return following.partition("\n")[0].strip()


def last_line(text: str) -> str:
    """Returns the last line that is not blank, stripped."""
    return text.rstrip().rpartition("\n")[2].strip()


def _certain_anchors(text: str, anchor: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Yields the matches of an anchor that are no condition and no guess."""
    for match in anchor.finditer(text):
        before = text[max(0, match.start() - _CHARACTERS_BEFORE) : match.start()]
        if not _UNSURE.search(before) and not _HEDGED.search(match.group()):
            yield match


def _statements_after(text: str, anchor: re.Pattern[str]) -> Iterator[Statement]:
    for match in _certain_anchors(text, anchor):
        before = text[max(0, match.start() - _CHARACTERS_BEFORE) : match.start()]
        rest = text[match.end() : match.end() + MAX_STATEMENT_CHARACTERS]
        begins_line = match.group().endswith("\n") or rest.lstrip(_MARKUP).startswith("\n")
        stated = _joined_words(rest.strip().partition("\n\n")[0]) if begins_line else rest.partition("\n")[0]
        on_answer_line = ":" in match.group() and bool(
            _LINE_START.search(before if match.start() > _CHARACTERS_BEFORE else f"\n{before}")
        )
        stated = f"not {stated.strip()}" if _DENIED.search(match.group()) else stated.strip()
        yield Statement(stated, match.start(), on_answer_line)


def _joined_words(paragraph: str) -> str:
    """Returns the words of a list that has one word a line; the first line of any other paragraph."""
    lines = paragraph.split("\n")
    items = [_ITEM.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(items):
        return " ".join(item[1] for item in items if item)
    return lines[0].strip()


def closing_word_list(text: str) -> str:
    """Returns the words of the list that ends the text, one word a line; "" if it has fewer than two."""
    items: list[str] = []
    for line in reversed(text.rstrip().split("\n")):
        item = _ITEM.fullmatch(line)
        if not item:
            break
        items.insert(0, item[1])
    return " ".join(items) if len(items) > 1 else ""
