"""Replaces characters that stand for ASCII characters."""

from __future__ import annotations

import unicodedata
from itertools import chain

_FULL_WIDTH = range(0xFF01, 0xFF5F)
_MATHEMATICAL = range(0x1D400, 0x1D800)
_SIGNS = {
    "-": "\u2212\u2010\u2011\ufe63",  # minus and hyphens
    '"': "\u201c\u201d\u201e\u300c\u300d",
    "'": "\u2018\u2019",
    " ": "\u00a0\u202f\u3000",
    ".": "\u3002",
    ",": "\u3001",
    "[": "\u3010",
    "]": "\u3011",
    "": "\u200b\u200c\u200d\ufeff\ufe0f",  # of no width
}
_TABLE = str.maketrans(
    {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in chain(_FULL_WIDTH, _MATHEMATICAL)}
    | {sign: ascii_ for ascii_, signs in _SIGNS.items() for sign in signs}
)


def to_ascii(text: str) -> str:
    """Returns the text with full-width and mathematical letters and digits, signs and quotes in ASCII.

    A letter of another alphabet stays, even where it looks like an ASCII letter. NFKC normalization of the whole text
    is not used: its time is quadratic in the length of a row of combining marks.
    """
    return text.translate(_TABLE)
