r"""Converts formulas to SymPy expressions, by math-verify's LaTeX parser.

That parser drops what it does not know: it reads `5^T` as 5, `n \mid 5` as 5, `3 4` as 7. `is_readable_formula`
checks beforehand that a text has nothing else. Values are exact: a decimal becomes the rational number as written.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from sympy import Basic, E, Expr, Float, I, MatrixBase, Rational, Symbol

from tempo_megatron.grading.math_values.vocabulary import PARSED_COMMANDS

_CASE_SENSITIVE = ConversionConfig(lowercase_symbols=False)
_KNOWN_COMMANDS = frozenset(f"\\{name}" for name in PARSED_COMMANDS)
_MATRICES = frozenset(
    rf"\{end}{{{kind}matrix}}" for end in ("begin", "end") for kind in ("", "p", "b", "v", "B", "V", "small")
)
_ARRAY = re.compile(r"([(\[|])?\\begin\{array\}\{[lcr|]*\}(.*?)\\end\{array\}([)\]|])?", re.DOTALL)
_TOKEN = re.compile(r"\\(?:begin|end|operatorname)\{[^{}]*\}|\\[a-zA-Z]+|\\.|[^a-zA-Z0-9 ]")
_SIGNS = frozenset("+-*/^_(){}[]|!.,&=<")
_UNREADABLE = re.compile(
    r"\d *_|[\d.] +[\d.]|\^ *\{T\}|[-+*/^_] *[*/^_]|[*/^_] *$|^ *[*/^!)]"
    r"|\(\)|\{\}[^{]|\.\.|\.\D*$|\d\.\d+\.|[,=](?![^(]*\))"
)
_SUBSCRIPT = re.compile(r"_\{[^{}]*\}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?) *\\degree")
_CIS = re.compile(r"\\operatorname\{cis\} *(\((?:[^()]|\([^()]*\))*\)|\\frac\{[^{}]*\}\{[^{}]*\}|[\w.\\]+)")
_COMBINATIONS = re.compile(r"(?<![A-Za-z\\])([CP])\(([^(),]+),([^(),]+)\)")
_CHOOSE = re.compile(r"\{?([^{}()+*/=-]+)\\choose *([^{}()+*/=-]+)\}?")


def is_readable_formula(latex: str) -> bool:
    """Returns whether math-verify's parser reads all of the text: known commands, and signs in valid places."""
    latex = _ARRAY.sub(r"\\begin{pmatrix}\2\\end{pmatrix}", latex)
    matrix = "matrix}" in latex
    for token in _TOKEN.findall(latex):
        if (
            token not in _KNOWN_COMMANDS
            and token not in _SIGNS
            and token not in _MATRICES
            and not (matrix and token == r"\\")
        ):
            return False
    depths = list(accumulate((char in "([{") - (char in ")]}") for char in latex))
    if min(depths, default=0) < 0 or (depths and depths[-1] != 0):
        return False
    if not re.search(r"[\w]|\\infty|\\pi|\\[a-zA-Z]", latex):
        return False
    return not _UNREADABLE.search(_SUBSCRIPT.sub("_n", latex))


@lru_cache(maxsize=512)
def parse_formula(latex: str) -> Basic | MatrixBase:
    """Returns the formula's expression, not evaluated. i is the imaginary unit, e is Euler's number.

    Raises ValueError if the formula cannot be parsed.
    """
    try:
        parsed = latex2sympy(
            _rewrite_for_parser(latex), is_real=True, normalization_config=None, conversion_config=_CASE_SENSITIVE
        )
    except Exception as error:  # the parser raises plain Exception
        raise ValueError(f"{latex!r} cannot be read as a formula") from error
    if not isinstance(parsed, (Expr, MatrixBase)):
        raise ValueError(f"{latex!r} is not one value")
    if not parsed.atoms(Symbol, Float):
        return parsed
    exact = {number: Rational(str(number)) for number in parsed.atoms(Float)}
    constants = {symbol: {"e": E, "i": I}[symbol.name] for symbol in parsed.free_symbols if symbol.name in ("e", "i")}
    letters = {symbol: Symbol(symbol.name, real=True) for symbol in parsed.free_symbols if symbol not in constants}
    return parsed.xreplace(exact | constants | letters)


def _rewrite_for_parser(latex: str) -> str:
    latex = _ARRAY.sub(r"\\begin{pmatrix}\2\\end{pmatrix}", latex)
    latex = _DEGREES.sub(r"(\1\\cdot \\frac{\\pi}{180})", latex)
    latex = _COMBINATIONS.sub(lambda match: _combinations(*match.groups()), latex)
    latex = _CHOOSE.sub(r"\\binom{\1}{\2}", latex)
    return _CIS.sub(r"e^{i \1}", latex)


def _combinations(kind: str, n: str, k: str) -> str:
    return rf"\binom{{{n}}}{{{k}}}" if kind == "C" else rf"\frac{{({n})!}}{{(({n})-({k}))!}}"
