"""The value that prose states as its final answer: after "answer is", after "####", or in the last line.

At most 500 characters of a statement are read, so that no pattern sees a long text.
"""

from __future__ import annotations

import re

from tempo_megatron.grading.answer_statements import MAX_STATEMENT_CHARACTERS, last_line, stated_lines
from tempo_megatron.grading.ascii_text import to_ascii
from tempo_megatron.grading.math_values.parser import parse_value
from tempo_megatron.grading.math_values.values import NamedValue, SetOperation, UnparsedText, Value, ValueSequence

_MAX_WORDS = 25
_MAX_TEXT_CHARACTERS = 60
_CHARACTERS_BEFORE = 20
_HEDGES = r"or|and|maybe|perhaps|possibly|probably|alternatively|otherwise|also|not|wrong|but|in base|base|mod"
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|[*_`]+(?:\s|$))")
_SUBORDINATE_CLAUSE = re.compile(
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
_FILLER = re.compile(
    r"(?:[*_`#>\s]+|(?:indeed|simply|just|exactly|precisely|therefore|thus|equal to|given by|the number|the value"
    r"|only|clearly|:)\s+)"
)
_APPROXIMATELY = re.compile(r"(?:approximately|approx\.?|about|roughly|around) +(?=[-\d.$])", re.IGNORECASE)
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
_NO_VALUE_START = re.compile(
    r"(?:so|we|up|to|by|at|of|on|it|he|my|us|an|as|be|do|go|if|me|is|in|a|I)\b(?! *[=<>^(])", re.IGNORECASE
)


def parse_stated_value(text: str) -> Value | None:
    """Returns the value that prose states as its answer; None if there is none.

    The last "answer is" takes precedence over "####", and "####" over the last line.
    """
    statements = [line for line in stated_lines(to_ascii(text)) if line]
    if statements:
        return _value_of_statement(statements[-1])
    _, marker, after = text.rpartition("####")
    if marker:
        return _value_of_statement(after[:MAX_STATEMENT_CHARACTERS].strip().partition("\n")[0])
    return _value_of_last_line(last_line(text)[-MAX_STATEMENT_CHARACTERS:])


def _value_of_statement(statement: str) -> Value | None:
    """Returns the value of a statement up to the end of its sentence or clause."""
    sentence = _NOT_BUT.sub("", statement, count=1) if _NOT_BUT.match(statement) else statement
    sentence = _without_fillers(_ASIDE.sub("", _CONTRAST.sub("", sentence)))
    end = _SENTENCE_END.search(sentence)
    if end and _ADDS_ANOTHER.match(sentence, end.start()):
        return None
    sentence = _SUBORDINATE_CLAUSE.sub("", sentence[: end.start()] if end else sentence)
    value = parse_value(_without_markup(_APPROXIMATELY.sub(r"\\approx ", sentence)))
    return value if not isinstance(value, UnparsedText) or 0 < len(value.text) <= _MAX_TEXT_CHARACTERS else None


def _without_fillers(statement: str) -> str:
    while match := _FILLER.match(statement):
        statement = statement[match.end() :]
    return statement


def _value_of_last_line(line: str) -> Value | None:
    """Returns the value of a last line: the whole line's, or else the one that ends its last sentence."""
    line_value = parse_value(_without_markup(line.strip()))
    if _is_clear(line_value) and not _NO_VALUE_START.match(line):
        return line_value
    sentences = _SENTENCE_END.split(_ASIDE.sub("", line).strip())
    last = next((part.strip() for part in reversed(sentences) if re.search(r"\w", part)), "")
    if _NO_ANSWER.search(last):
        return None
    starts = [match.start() for match in re.finditer(r"\S+", last)][-_MAX_WORDS:]
    if not _VERB.search(last):
        starts = starts[:1]
    for start in starts:
        value = parse_value(_without_markup(last[start:]))
        if not _NO_VALUE_START.match(last, start) and _is_clear(value):
            return None if _BOUND_BEFORE.search(last[max(0, start - _CHARACTERS_BEFORE) : start]) else value
    return None


def _without_markup(statement: str) -> str:
    return statement.strip(" *_`:")


def _is_clear(value: Value) -> bool:
    """Returns whether no part of the value is unparsed text."""
    if isinstance(value, ValueSequence):
        return all(map(_is_clear, value.items))
    if isinstance(value, SetOperation):
        return not isinstance(value.operands[0], UnparsedText) or value.operands[0].text.startswith(r"\mathbb")
    return _is_clear(value.value) if isinstance(value, NamedValue) else not isinstance(value, UnparsedText)
