r"""Plain LaTeX in marks: a command, a word in `\text{}`, a number or a character. Brackets are kept together."""

from __future__ import annotations

import re
from collections.abc import Callable

from tempo_megatron.grading.vocabulary import RELATIONS

_MARK = re.compile(
    r"\\text\{[^{}]*\}|\\(?:begin|end)\{[^{}]*\}|\\operatorname\{[^{}]*\}|\\mathbb\{[^{}]*\}|\\not *(?:=|\\in(?![a-z]))"
    r"|\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|[<>!]=|.",
    re.DOTALL,
)
_AND_OR = re.compile(r"\\text\{[ ,]*(and|or)[ ,]*\}", re.IGNORECASE)
OPENING = frozenset(["(", "[", "{", r"\{", r"\lfloor", r"\lceil", r"\langle"])
CLOSING = frozenset([")", "]", "}", r"\}", r"\rfloor", r"\rceil", r"\rangle"])
SIGNS = {
    "=": "=", "<": "<", ">": ">", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", r"\not=": r"\ne ",
    r"\not\in": r"\notin ",
} | {f"\\{name}": f"\\{name} " for name in RELATIONS}  # fmt: skip


def marks_of(latex: str) -> list[str]:
    """The marks, which joined give the text; "and" and "or" stand without their `\\text{}`."""
    return [
        _AND_OR.sub(lambda match: match.group(1).lower(), mark).replace(r"\not ", r"\not")
        for mark in _MARK.findall(latex)
    ]


def written(marks: list[str]) -> str:
    return "".join(rf"\text{{ {mark} }}" if mark in ("and", "or") else mark for mark in marks).strip()


def split(marks: list[str], parts_at: Callable[[str], bool]) -> tuple[list[list[str]], list[str]]:
    """The marks between those outside of brackets at which `parts_at` holds, and these themselves."""
    pieces: list[list[str]] = [[]]
    cuts: list[str] = []
    depth = 0
    for mark in marks:
        depth += _opens(mark) - _closes(mark)
        if depth == 0 and parts_at(mark):
            pieces.append([])
            cuts.append(mark)
        else:
            pieces[-1].append(mark)
    return pieces, cuts


def closed_by(marks: list[str]) -> int:
    """The index of the bracket that closes the first mark; -1 for none."""
    depth = 0
    for index, mark in enumerate(marks):
        depth += _opens(mark) - _closes(mark)
        if depth == 0:
            return index
    return -1


def _opens(mark: str) -> bool:
    return mark in OPENING or mark.startswith(r"\begin{")


def _closes(mark: str) -> bool:
    return mark in CLOSING or mark.startswith(r"\end{")
