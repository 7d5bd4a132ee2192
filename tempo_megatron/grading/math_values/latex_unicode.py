"""Replaces Unicode's digits, signs and letters by LaTeX."""

# ruff: noqa: RUF001 (the look-alike characters are intended)

from __future__ import annotations

import re

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta",
    "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SIGNS = {
    "×": "times", "·": "cdot", "⋅": "cdot", "÷": "div", "±": "pm", "∓": "mp", "≤": "le", "≥": "ge", "⩽": "le",
    "⩾": "ge",
    "≠": "ne", "≈": "approx", "≡": "equiv", "∈": "in", "∉": "notin", "∪": "cup", "∩": "cap", "∖": "setminus",
    "∅": "emptyset",
    "∞": "infty", "°": "degree", "…": "ldots", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "∨": "lor",
    "∧": "land", "∣": "mid", "→": "to", "¬": "neg", "∠": "angle",
}  # fmt: skip
_FULL_WIDTH = {chr(ord(char) + 0xFEE0): char for char in "()[]=+/*<>.,;:!|"}
_PUNCTUATION = _FULL_WIDTH | {
    "、": ", ", "。": ".", "٬": ",", "٫": ".", "’": "'", "′": "'", "∗": "*", "∕": "/", "⁄": "/", "％": r"\%",
    "＄": r"\$", "ℝ": r"\mathbb{R}", "€": r"\text{€}", "£": r"\text{£}", "¥": r"\text{¥}", "₹": r"\text{₹}",
}  # fmt: skip
_FRACTIONS = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
              "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8)}  # fmt: skip
_TABLE = str.maketrans(
    {char: rf"\{name} " for char, name in (_GREEK | _SIGNS).items()}
    | _PUNCTUATION
    | {char: rf"\frac{{{numerator}}}{{{denominator}}}" for char, (numerator, denominator) in _FRACTIONS.items()}
    | {chr(first + digit): str(digit) for first in (0xFF10, 0x0660, 0x06F0, 0x0966) for digit in range(10)}
    | {chr(first + letter): chr(base + letter) for first, base in ((0xFF21, 65), (0xFF41, 97)) for letter in range(26)}
    | dict.fromkeys("−–—‐‑‒﹣－⁃", "-")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f", "")
    | dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t\r\n", " ")
)
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉ₙ]+")
_ROOT = re.compile(r"([√∛∜])\s*(\d+|(?=\()|[a-zA-Z])")
_ROOT_COMMANDS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}


def unicode_to_latex(text: str) -> str:
    """Returns the text with Unicode's digits, signs, letters, fractions, powers and indices in LaTeX.

    Invisible characters are removed.
    """
    text = _ROOT.sub(_root, text)
    text = _SUPERSCRIPT_RUN.sub(lambda match: f"^{{{match.group().translate(_SUPERSCRIPT)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda match: f"_{{{match.group().translate(_SUBSCRIPT)}}}", text)
    return text.translate(_TABLE)


def _root(match: re.Match[str]) -> str:
    command = _ROOT_COMMANDS[match.group(1)]
    return f"{command}{{{match.group(2)}}}" if match.group(2) else command
