r"""One way to write what LaTeX, Unicode and Markdown write in many.

`plain` maps characters to LaTeX, takes away fonts, colors, sizes and spaces, and completes short forms (`\frac12`).
Its output holds words only inside `\text{}`. Every function takes time linear in the text.
"""

from __future__ import annotations

import re

from tempo_megatron.grading.latex_characters import without_unicode
from tempo_megatron.grading.vocabulary import (
    FONTS,
    FUNCTIONS,
    NO_MEANING,
    NO_MEANING_WITH_ARGUMENT,
    PRODUCTS,
    SHORT_WORDS,
)

_TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|.", re.DOTALL)
_SPACING = frozenset([r"\,", r"\;", r"\:", r"\ ", r"\>", r"\/", "~", r"\quad", r"\qquad", r"\thinspace", r"\ "])
_RENAMED = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne",
    r"\leqslant": r"\le", r"\geqslant": r"\ge", r"\lt": "<", r"\gt": ">", r"\dots": r"\ldots", r"\cdots": r"\ldots",
    r"\vee": r"\lor", r"\wedge": r"\land", r"\varnothing": r"\emptyset", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\ast": "*", r"\backslash": r"\setminus", r"\lbrack": "[", r"\rbrack": "]", r"\R": r"\mathbb{R}",
    r"\bar": r"\overline", r"\bmod": r"\mod", r"\pmod": r"\mod", r"\imath": "i", r"\dotsc": r"\ldots",
    r"\dotsb": r"\ldots", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\colon": ":", r"\tbinom": r"\binom",
    r"\dbinom": r"\binom", r"\pounds": r"\text{£}", r"\euro": r"\text{€}", r"\percent": r"\%",
}  # fmt: skip
_TWO_ARGUMENTS = frozenset([r"\frac", r"\binom"])
_DEEPEST = 60
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")  # noqa: RUF001
_SPELLED = {"infinity": r"\infty ", "inf": r"\infty ", "lcm": r"\operatorname{lcm}"}
_NUMBER_FIRST = re.compile(r" *\d[\d.,/]* *[^\W\d_]")
_NUMBERS_IN_WORDS = re.compile(r"[^\W\d_][^\d]*")
_UNIT = re.compile(r" +[mgshlL] *| *[mgshlL]/[a-z](?:\^[23])? *| *[ap]\.m\.? *")
_CURRENCIES = frozenset("€£¥₹")

_MARKDOWN = re.compile(r"\*\*|__+|`|</?(?:b|i|em|strong|code)>")
_PLAIN_WORD = re.compile(
    r"\\(?:text|begin|end|operatorname|mathbb)\{[^{}]*\}|\\[a-zA-Z]+|\\."
    r"|(?P<word>(?:sq|cu)\.|[a-zA-Z]{2,}(?:['-][a-zA-Z]+)*|[^\W\d_a-zA-Z]+)"
)
_WORDS_APART = re.compile(r"\\text\{[^{}]*\}(?: *\\text\{[^{}]*\})+")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")

Node = str | list["Node"]  # a command, a character, or the content of braces


def plain(latex: str) -> str:
    r"""The formula in plain LaTeX; words stand in `\text{}`.

    Raises ValueError for braces that do not match or nest too deep.
    """
    rewritten = _written(_rewritten(_grouped(without_unicode(_MARKDOWN.sub("", latex)))))
    return _WORDS_APART.sub(_joined, _PLAIN_WORD.sub(_spelled, rewritten)).strip()


def _joined(match: re.Match[str]) -> str:
    return rf"\text{{{' '.join(_TEXT.findall(match.group()))}}}"


def _spelled(match: re.Match[str]) -> str:
    r"""A run of letters outside of commands: a function's command, a word in `\text{}`, or a product of letters."""
    word = match.group("word")
    if not word:
        return match.group()
    bare = word.rstrip(".")
    if bare in _SPELLED:
        return _SPELLED[bare]
    if bare in FUNCTIONS:
        return rf"\{bare} "
    product = (
        bare in PRODUCTS or (bare.isupper() and len(bare) < 5) or (len(bare) < 3 and bare.lower() not in SHORT_WORDS)
    )
    return word if bare.isascii() and product else rf"\text{{{bare}}}"


def _grouped(latex: str) -> list[Node]:
    levels: list[list[Node]] = [[]]
    for token in _TOKEN.findall(latex):
        if token == "{":
            levels.append([])
            if len(levels) > _DEEPEST:
                raise ValueError("braces nest too deep")
        elif token == "}":
            if len(levels) == 1:
                raise ValueError("a brace closes nothing")
            group = levels.pop()
            levels[-1].append(group)
        elif token != "$" and token not in (r"\(", r"\)", r"\[", r"\]"):
            levels[-1].append(token)
    if len(levels) > 1:
        raise ValueError("a brace is never closed")
    return levels[0]


def _rewritten(nodes: list[Node]) -> list[Node]:
    """The nodes without fonts, sizes and spacing, and with braces around each argument."""
    rewritten: list[Node] = []
    rest = nodes[::-1]
    while rest:
        node = rest.pop()
        if isinstance(node, list):
            rewritten.append(_rewritten(node))
            continue
        node = _RENAMED.get(node, node)
        name = node[1:]
        if node in _SPACING:
            rewritten.append(" ")
        elif node == r"\!":
            while rest and rest[-1] == " ":
                rest.pop()
        elif node[0] != "\\" or (len(node) < 3 and node not in _RENAMED):
            rewritten.append(node)
            if node in "^_":
                rewritten.append(_argument(rest))
        elif name in NO_MEANING:
            if name in ("left", "right") and rest and rest[-1] == ".":
                rest.pop()
        elif name in ("color", "textcolor") and rest and isinstance(rest[-1], list):
            rest.pop()
        elif name in NO_MEANING_WITH_ARGUMENT:
            _argument(rest)
        elif name in FONTS:
            rewritten += _text(_argument(rest))
        elif node == r"\sqrt":
            rewritten += [node, *_index(rest), _argument(rest)]
        elif node in _TWO_ARGUMENTS:
            rewritten += [node, _argument(rest), _argument(rest)]
        else:
            rewritten.append(node)
    return rewritten


def _argument(rest: list[Node]) -> list[Node]:
    """The next argument, taken from the end of `rest`: braces, parentheses, a command with its own, a character."""
    while rest and rest[-1] == " ":
        rest.pop()
    if not rest:
        return []
    node = rest.pop()
    if isinstance(node, list):
        return _rewritten(node)
    if node == "(":
        return _rewritten(_until(rest, "(", ")"))
    if _RENAMED.get(node, node) in _TWO_ARGUMENTS:
        return [_RENAMED.get(node, node), _argument(rest), _argument(rest)]
    if node == r"\sqrt":
        return [node, *_index(rest), _argument(rest)]
    if node[1:] in FONTS:
        return _text(_argument(rest))
    return _rewritten([node])


def _index(rest: list[Node]) -> list[Node]:
    if not rest or rest[-1] != "[":
        return []
    rest.pop()
    return ["[", *_rewritten(_until(rest, "[", "]")), "]"]


def _until(rest: list[Node], opening: str, closing: str) -> list[Node]:
    """What stands before the bracket that closes; all of the rest where none does."""
    inside: list[Node] = []
    depth = 1
    while rest:
        node = rest.pop()
        depth += (node == opening) - (node == closing)
        if not depth:
            break
        inside.append(node)
    return inside


def _text(content: list[Node]) -> list[Node]:
    r"""Words in `\text{}`, anything else as it is."""
    words = _written(content).replace("{", "").replace("}", "")
    if words in ("lcm", "cis"):
        return [rf"\operatorname{{{words}}}"]
    if words.strip().lower() in _SPELLED:
        return [_SPELLED[words.strip().lower()].strip(), " "]
    letters = _WORD.findall(words)
    if _NUMBER_FIRST.match(words):
        return list(_NUMBERS_IN_WORDS.sub(lambda match: rf"\text{{{match.group()}}}", words))
    if words.strip() in _CURRENCIES or _UNIT.fullmatch(words):
        return [rf"\text{{{words}}}"]
    if "\\" in words or not any(len(word) > 1 for word in letters):
        return content
    if len(letters) == 1 and letters[0] == words.strip() and words.strip() in FUNCTIONS:
        return [f"\\{words.strip()}", " "]
    return [rf"\text{{{words}}}"]


def _written(nodes: list[Node]) -> str:
    pieces: list[str] = []
    for node in nodes:
        if isinstance(node, list):
            pieces.append(f"{{{_written(node)}}}")
            continue
        if pieces and pieces[-1][0] == "\\" and pieces[-1][-1].isalpha() and node[0].isalpha():
            pieces.append(" ")
        pieces.append(node)
    return "".join(pieces)
