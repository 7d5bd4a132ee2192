r"""Splits normalized LaTeX into tokens: a command, words in `\text{}`, a number or a character."""

from __future__ import annotations

import re
from collections.abc import Callable

from tempo_megatron.grading.math_values.vocabulary import RELATIONS

_TOKEN = re.compile(
    r"\\text\{[^{}]*\}|\\(?:begin|end)\{[^{}]*\}|\\operatorname\{[^{}]*\}|\\mathbb\{[^{}]*\}|\\not *(?:=|\\in(?![a-z]))"
    r"|\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|[<>!]=|.",
    re.DOTALL,
)
_AND_OR = re.compile(r"\\text\{[ ,]*(and|or)[ ,]*\}", re.IGNORECASE)
OPENING_BRACKETS = frozenset(["(", "[", "{", r"\{", r"\lfloor", r"\lceil", r"\langle"])
CLOSING_BRACKETS = frozenset([")", "]", "}", r"\}", r"\rfloor", r"\rceil", r"\rangle"])
RELATION_SIGNS = {
    "=": "=", "<": "<", ">": ">", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", r"\not=": r"\ne ",
    r"\not\in": r"\notin ",
} | {f"\\{name}": f"\\{name} " for name in RELATIONS}  # fmt: skip


def tokenize_latex(latex: str) -> list[str]:
    r"""Returns the tokens of the text, in order. "and" and "or" stand without their `\text{}`."""
    return [
        _AND_OR.sub(lambda match: match.group(1).lower(), token).replace(r"\not ", r"\not")
        for token in _TOKEN.findall(latex)
    ]


def join_tokens(tokens: list[str]) -> str:
    """Returns the LaTeX of the tokens, stripped."""
    return "".join(rf"\text{{ {token} }}" if token in ("and", "or") else token for token in tokens).strip()


def split_outside_brackets(tokens: list[str], is_separator: Callable[[str], bool]) -> tuple[list[list[str]], list[str]]:
    """Splits the tokens at separators outside of brackets. Returns the pieces, and the separators between them."""
    pieces: list[list[str]] = [[]]
    separators: list[str] = []
    depth = 0
    for token in tokens:
        depth += _opens(token) - _closes(token)
        if depth == 0 and is_separator(token):
            pieces.append([])
            separators.append(token)
        else:
            pieces[-1].append(token)
    return pieces, separators


def closing_bracket_index(tokens: list[str]) -> int:
    """Returns the index of the bracket that closes the first token; -1 if none does."""
    depth = 0
    for index, token in enumerate(tokens):
        depth += _opens(token) - _closes(token)
        if depth == 0:
            return index
    return -1


def _opens(token: str) -> bool:
    return token in OPENING_BRACKETS or token.startswith(r"\begin{")


def _closes(token: str) -> bool:
    return token in CLOSING_BRACKETS or token.startswith(r"\end{")
