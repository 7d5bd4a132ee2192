r"""Formulas as SymPy expressions, by math-verify's parser of LaTeX.

The parser drops what it does not know (`5^T` is 5 to it, `n \mid 5` is 5, `3 4` is 7). `is_formula` says beforehand
whether a text holds only what it reads. Values are exact: a decimal is the rational number that is written.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from sympy import Basic, E, Expr, Float, I, MatrixBase, Rational, Symbol

from tempo_megatron.grading.vocabulary import PARSED_COMMANDS

_CASE_COUNTS = ConversionConfig(lowercase_symbols=False)
_KNOWN = frozenset(f"\\{name}" for name in PARSED_COMMANDS)
_MATRICES = frozenset(
    rf"\{end}{{{kind}matrix}}" for end in ("begin", "end") for kind in ("", "p", "b", "v", "B", "V", "small")
)
_ARRAY = re.compile(r"([(\[|])?\\begin\{array\}\{[lcr|]*\}(.*?)\\end\{array\}([)\]|])?", re.DOTALL)
_MARK = re.compile(r"\\(?:begin|end|operatorname)\{[^{}]*\}|\\[a-zA-Z]+|\\.|[^a-zA-Z0-9 ]")
_SIGNS = frozenset("+-*/^_(){}[]|!.,&=<")
_UNREADABLE = re.compile(
    r"\d *_|[\d.] +[\d.]|\^ *\{T\}|[-+*/^_] *[*/^_]|[*/^_] *$|^ *[*/^!)]"
    r"|\(\)|\{\}[^{]|\.\.|\.\D*$|\d\.\d+\.|[,=](?![^(]*\))"
)
_SUBSCRIPT = re.compile(r"_\{[^{}]*\}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?) *\\degree")
_CIS = re.compile(r"\\operatorname\{cis\} *(\((?:[^()]|\([^()]*\))*\)|\\frac\{[^{}]*\}\{[^{}]*\}|[\w.\\]+)")
_COUNTS = re.compile(r"(?<![A-Za-z\\])([CP])\(([^(),]+),([^(),]+)\)")
_CHOOSE = re.compile(r"\{?([^{}()+*/=-]+)\\choose *([^{}()+*/=-]+)\}?")


def is_formula(latex: str) -> bool:
    """Whether math-verify's parser reads all of the text: known commands, and signs in places where it heeds them."""
    latex = _ARRAY.sub(r"\\begin{pmatrix}\2\\end{pmatrix}", latex)
    matrix = "matrix}" in latex
    for mark in _MARK.findall(latex):
        if mark not in _KNOWN and mark not in _SIGNS and mark not in _MATRICES and not (matrix and mark == r"\\"):
            return False
    depths = list(accumulate((char in "([{") - (char in ")]}") for char in latex))
    if min(depths, default=0) < 0 or (depths and depths[-1] != 0):
        return False
    if not re.search(r"[\w]|\\infty|\\pi|\\[a-zA-Z]", latex):
        return False
    bare = _SUBSCRIPT.sub("_n", latex)
    return not _UNREADABLE.search(bare)


@lru_cache(maxsize=512)
def expression(latex: str) -> Basic | MatrixBase:
    """The formula's value, not evaluated. i is the imaginary unit, e is Euler's number.

    Raises ValueError where it cannot be read.
    """
    try:
        parsed = latex2sympy(
            _for_parser(latex), is_real=True, normalization_config=None, conversion_config=_CASE_COUNTS
        )
    except Exception as error:  # the parser raises Exception itself
        raise ValueError(f"{latex!r} cannot be read as a formula") from error
    if not isinstance(parsed, (Expr, MatrixBase)):
        raise ValueError(f"{latex!r} is not one value")
    if not parsed.atoms(Symbol, Float):
        return parsed
    exact = {number: Rational(str(number)) for number in parsed.atoms(Float)}
    constants = {symbol: {"e": E, "i": I}[symbol.name] for symbol in parsed.free_symbols if symbol.name in ("e", "i")}
    letters = {symbol: Symbol(symbol.name, real=True) for symbol in parsed.free_symbols if symbol not in constants}
    return parsed.xreplace(exact | constants | letters)


def _for_parser(latex: str) -> str:
    latex = _ARRAY.sub(r"\\begin{pmatrix}\2\\end{pmatrix}", latex)
    latex = _DEGREES.sub(r"(\1\\cdot \\frac{\\pi}{180})", latex)
    latex = _COUNTS.sub(lambda match: _count(*match.groups()), latex)
    latex = _CHOOSE.sub(r"\\binom{\1}{\2}", latex)
    return _CIS.sub(r"e^{i \1}", latex)


def _count(kind: str, n: str, k: str) -> str:
    return rf"\binom{{{n}}}{{{k}}}" if kind == "C" else rf"\frac{{({n})!}}{{(({n})-({k}))!}}"
