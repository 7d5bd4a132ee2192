"""The final answer that prose states: behind "answer is", behind "####", or at the end of the last line.

Only 500 characters of a statement are looked at, so that no pattern meets a text of any other length.
"""

from __future__ import annotations

import re

from tempo_megatron.grading.characters import in_ascii
from tempo_megatron.grading.final_answer import last_line, stated
from tempo_megatron.grading.reading import read
from tempo_megatron.grading.values import Combination, Named, Opaque, Sequence, Value

LONGEST = 500
_MOST_WORDS = 25
_LONGEST_TEXT = 60
_BEFORE = 20
_HEDGES = r"or|and|maybe|perhaps|possibly|probably|alternatively|otherwise|also|not|wrong|but|in base|base|mod"
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|[*_`]+(?:\s|$))")
_CLAUSE = re.compile(
    rf",? (?:since|because|as|which|so|hence|thus|found)\b.*|, (?!(?:{_HEDGES})\b)[a-z]{{2,}} .*"
    rf"|, I (?:think|believe)\b.*|[;—] (?!(?:{_HEDGES})\b)(?![-\d$(]).*",
    re.DOTALL,
)
_ASIDE = re.compile(rf" \((?!(?:{_HEDGES})\b)[A-Za-z]{{2,}} [^()]*\)")
_CONTRAST = re.compile(r",? \(?not [-$\d].*", re.DOTALL)
_NOT_BUT = re.compile(r"not [^,;.]{1,40}?,? but (?:rather )?(?=\S)")
_ADDS_ANOTHER = re.compile(
    r"\?|[.!][*_`$]{0,4}\s{1,3}(?:(?:but|and|or|also|maybe|perhaps|possibly|alternatively"
    r"|it (?:could|may|might) be)\b,? )+[-$\d(]",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"(?:[*_`#>\s]+|(?:indeed|simply|just|exactly|precisely|therefore|thus|equal to|given by|the number|the value"
    r"|only|clearly|:)\s+)"
)
_ABOUT = re.compile(r"(?:approximately|approx\.?|about|roughly|around) +(?=[-\d.$])", re.IGNORECASE)
_VERB = re.compile(
    r"\b(?:is|are|was|be|equals?|gives?|gets?|got|obtains?|makes?|costs?|weighs?|with|yields?|becomes?|has|have|totals?|needs?"
    r"|result|it's)\b|[=:]",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"\b(?:not|no|never|cannot|none|neither|nor|between|wrong|incorrect|error|problem|question|exercise|confidence|step"
    r"|confident|case|give up|guess|unsure|uncertain|unknown|perhaps|maybe|may be|might|could|if|page|figure|table"
    r"|attempt|try|lies|another|doubt)\b|n't\b|\?",
    re.IGNORECASE,
)
_BOUND_BEFORE = re.compile(
    r"\b(?:at (?:least|most)|(?:more|less|fewer|greater|larger|smaller|higher|lower) than|up to|over|under|above|below"
    r"|exceeds?) +$",
    re.IGNORECASE,
)
_NOT_FIRST = re.compile(
    r"(?:so|we|up|to|by|at|of|on|it|he|my|us|an|as|be|do|go|if|me|is|in|a|I)\b(?! *[=<>^(])", re.IGNORECASE
)


def stated_value(text: str) -> Value | None:
    """The value that prose gives as its answer; None for none. Nothing behind a clear "answer is" overrides it."""
    anchored = [statement for statement in stated(in_ascii(text)) if statement]
    if anchored:
        return _of_statement(anchored[-1])
    _, marker, after = text.rpartition("####")
    if marker:
        return _of_statement(after[:LONGEST].strip().partition("\n")[0])
    return _of_line(last_line(text)[-LONGEST:])


def _of_statement(statement: str) -> Value | None:
    """The value of what follows an anchor, up to the end of its sentence or clause."""
    sentence = _NOT_BUT.sub("", statement, count=1) if _NOT_BUT.match(statement) else statement
    sentence = _without_fillers(_ASIDE.sub("", _CONTRAST.sub("", sentence)))
    end = _SENTENCE_END.search(sentence)
    if end and _ADDS_ANOTHER.match(sentence, end.start()):
        return None
    sentence = _CLAUSE.sub("", sentence[: end.start()] if end else sentence)
    value = read(_bare(_ABOUT.sub(r"\\approx ", sentence)))
    return value if not isinstance(value, Opaque) or 0 < len(value.text) <= _LONGEST_TEXT else None


def _without_fillers(statement: str) -> str:
    while match := _LEADING.match(statement):
        statement = statement[match.end() :]
    return statement


def _of_line(line: str) -> Value | None:
    """The value that a last line without an anchor ends with: all of it, or what its last sentence comes to."""
    whole = read(_bare(line.strip()))
    if _is_clear(whole) and not _NOT_FIRST.match(line):
        return whole
    sentence = _SENTENCE_END.split(_ASIDE.sub("", line).strip())
    last = next((part.strip() for part in reversed(sentence) if re.search(r"\w", part)), "")
    if _NO_ANSWER.search(last):
        return None
    starts = [match.start() for match in re.finditer(r"\S+", last)][-_MOST_WORDS:]
    if not _VERB.search(last):
        starts = starts[:1]
    for start in starts:
        value = read(_bare(last[start:]))
        if not _NOT_FIRST.match(last, start) and _is_clear(value):
            return None if _BOUND_BEFORE.search(last[max(0, start - _BEFORE) : start]) else value
    return None


def _bare(statement: str) -> str:
    return statement.strip(" *_`:")


def _is_clear(value: Value) -> bool:
    """Whether nothing of the value is mere words."""
    if isinstance(value, Sequence):
        return all(map(_is_clear, value.items))
    if isinstance(value, Combination):
        return not isinstance(value.operands[0], Opaque) or value.operands[0].text.startswith(r"\mathbb")
    return _is_clear(value.value) if isinstance(value, Named) else not isinstance(value, Opaque)
