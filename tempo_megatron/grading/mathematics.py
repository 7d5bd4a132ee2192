r"""Mathematics by math-verify, held to one final answer.

math-verify parses and compares; what it is given is decided here. A response's answer is its last box. Boxes that
stand with the last one, or plain numbers joined by "or", are several answers: they are right together as the gold's set
or list, or when each of them is right, and never because one of them is.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import accumulate
from typing import Any

from math_verify import parse, verify

from tempo_megatron.grading.final_answer import closing_boxes, last_line, stated
from tempo_megatron.grading.plain_labels import plain_label

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off; ours are not

_LONGEST = 10_000  # characters of a final answer; SymPy takes minutes over longer ones, and none of them is an answer
_NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?"
_VALUE = rf"(?:[a-zA-Z] ?= ?)?{_NUMBER}"
_ALTERNATIVES = re.compile(rf"(?:either )?{_VALUE}(?:(?:,? (?:or|and) |, |; ){_VALUE})+")
_ENDS = re.compile(r"[\s.!*]*$")
_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")
_DELIMITERS = re.compile(r"\\boxed|\\[()\[\]]|\\left|\\right|[$\s]")
_UNICODE = str.maketrans(
    {"∞": r"\infty ", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
    | {chr(ord("\uff10") + digit): str(digit) for digit in range(10)}  # full-width digits
)
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:\\[,:; ]|[ \u00a0\u202f])\d{3})+)(?!\d)")


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether the response's final answer equals `answer["answer"]`: LaTeX, with or without dollars, or a number."""
    gold = str(answer["answer"])
    parts = _parts(text)
    if not parts:
        return _equal(gold, text)
    if sum(map(len, parts)) > _LONGEST:
        return False
    together = _boxed(", ".join(parts))
    return _equal(gold, together) or (len(parts) > 1 and all(_equal(gold, _boxed(part)) for part in parts))


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    if not grade(_boxed(plain_label(answer).strip("$")), answer):
        raise ValueError(f"the label {answer['answer']!r:.80} is not graded right against itself")


def extract(text: str) -> str:
    """The final answer's LaTeX, several of them joined by commas; "" for none."""
    parts = _parts(text)
    if parts:
        return ", ".join(parts) if sum(map(len, parts)) <= _LONGEST else ""
    found = _parsed(text)
    return str(found[-1]) if found else ""


def equivalent(one: str, other: str) -> bool:
    """Whether two extracted answers have the same value."""
    return _equal(_boxed(one), _boxed(other))


def _parts(text: str) -> list[str]:
    """The answers that the response ends with, as it states them outside of prose; math-verify reads the prose."""
    boxes = closing_boxes(text)
    if boxes:
        return boxes
    anchored = stated(text)
    found = _ALTERNATIVES.match(anchored[-1]) if anchored else _at_end(last_line(text))
    return list(dict.fromkeys(re.findall(_NUMBER, found.group()))) if found else []


def _at_end(line: str) -> re.Match[str] | None:
    matches = [match for match in _ALTERNATIVES.finditer(line) if _ENDS.match(line, match.end())]
    return matches[-1] if matches else None


def _boxed(latex: str) -> str:
    return f"\\boxed{{{latex}}}"


def _equal(gold: str, response: str) -> bool:
    gold = gold if _DELIMITED.search(gold) else _boxed(gold)
    if _set_against_tuple(gold, response):
        return False
    return bool(verify(_parsed(gold), _parsed(response), timeout_seconds=None))


def _set_against_tuple(one: str, other: str) -> bool:
    """math-verify takes {1, 2} for the pair and the open interval (1, 2), and the other way round."""
    return {_bracketing(one), _bracketing(other)} == {"set", "tuple"}


def _bracketing(latex: str) -> str:
    """What one pair of brackets around all of it makes of an answer: "set", "tuple", or "" where there is none."""
    bare = _DELIMITERS.sub("", latex)
    if bare.startswith("{"):
        bare = bare[1:].removesuffix("}")
    if bare.startswith(r"\{"):
        return "set" if bare.endswith(r"\}") else ""
    depth = list(accumulate((char in "([") - (char in ")]") for char in bare))
    return "tuple" if depth and depth[0] == 1 and 0 not in depth[:-1] and depth[-1] == 0 else ""


def _written_plainly(text: str) -> str:
    """Characters and groups of digits that math-verify misreads, in LaTeX that it reads."""
    text = _ROOT.sub(r"\\sqrt{\1}", text.translate(_UNICODE))
    return _SPACED_THOUSANDS.sub(lambda match: match.group(1) + re.sub(r"\D", "", match.group(2)), text)


@lru_cache(maxsize=256)  # clustering compares each answer with many
def _parsed(text: str) -> list[Any]:
    return parse(_written_plainly(text), parsing_timeout=None)
