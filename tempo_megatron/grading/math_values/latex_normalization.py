r"""Normalizes the many notations of LaTeX, Unicode and Markdown to one.

`normalize_latex` maps characters to LaTeX, removes fonts, colors, sizes and spaces, and completes short forms
(`\frac12`). In its output, words stand only inside `\text{}`. Every function takes time linear in the text.
"""

from __future__ import annotations

import re

from tempo_megatron.grading.math_values.latex_unicode import unicode_to_latex
from tempo_megatron.grading.math_values.vocabulary import (
    FONTS,
    FUNCTIONS,
    IGNORED_COMMANDS,
    IGNORED_COMMANDS_WITH_ARGUMENT,
    PRODUCTS,
    SHORT_WORDS,
)

_TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|.", re.DOTALL)
_SPACING = frozenset([r"\,", r"\;", r"\:", r"\ ", r"\>", r"\/", "~", r"\quad", r"\qquad", r"\thinspace", r"\ "])
_SYNONYMS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne",
    r"\leqslant": r"\le", r"\geqslant": r"\ge", r"\lt": "<", r"\gt": ">", r"\dots": r"\ldots", r"\cdots": r"\ldots",
    r"\vee": r"\lor", r"\wedge": r"\land", r"\varnothing": r"\emptyset", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\ast": "*", r"\backslash": r"\setminus", r"\lbrack": "[", r"\rbrack": "]", r"\R": r"\mathbb{R}",
    r"\bar": r"\overline", r"\bmod": r"\mod", r"\pmod": r"\mod", r"\imath": "i", r"\dotsc": r"\ldots",
    r"\dotsb": r"\ldots", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\colon": ":", r"\tbinom": r"\binom",
    r"\dbinom": r"\binom", r"\pounds": r"\text{£}", r"\euro": r"\text{€}", r"\percent": r"\%",
}  # fmt: skip
_TWO_ARGUMENTS = frozenset([r"\frac", r"\binom"])
_MAX_BRACE_DEPTH = 60
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")  # noqa: RUF001
_SPELLED_COMMANDS = {"infinity": r"\infty ", "inf": r"\infty ", "lcm": r"\operatorname{lcm}"}
_STARTS_WITH_NUMBER = re.compile(r" *\d[\d.,/]* *[^\W\d_]")
_WORDS_AFTER_NUMBER = re.compile(r"[^\W\d_][^\d]*")
_UNIT = re.compile(r" +[mgshlL] *| *[mgshlL]/[a-z](?:\^[23])? *| *[ap]\.m\.? *")
_CURRENCIES = frozenset("€£¥₹")

_MARKDOWN = re.compile(r"\*\*|__+|`|</?(?:b|i|em|strong|code)>")
_PLAIN_WORD = re.compile(
    r"\\(?:text|begin|end|operatorname|mathbb)\{[^{}]*\}|\\[a-zA-Z]+|\\."
    r"|(?P<word>(?:sq|cu)\.|[a-zA-Z]{2,}(?:['-][a-zA-Z]+)*|[^\W\d_a-zA-Z]+)"
)
_ADJACENT_TEXTS = re.compile(r"\\text\{[^{}]*\}(?: *\\text\{[^{}]*\})+")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")

Node = str | list["Node"]
"""A command, a character, or the content of braces."""


def normalize_latex(latex: str) -> str:
    r"""Returns the formula in normalized LaTeX, with words in `\text{}`.

    Raises ValueError if braces do not match or nest too deep.
    """
    rewritten = _to_text(_rewrite(_parse_groups(unicode_to_latex(_MARKDOWN.sub("", latex)))))
    return _ADJACENT_TEXTS.sub(_join_texts, _PLAIN_WORD.sub(_wrap_word, rewritten)).strip()


def _join_texts(match: re.Match[str]) -> str:
    return rf"\text{{{' '.join(_TEXT.findall(match.group()))}}}"


def _wrap_word(match: re.Match[str]) -> str:
    r"""Returns a run of letters as a function's command, a word in `\text{}`, or a product of letters."""
    word = match.group("word")
    if not word:
        return match.group()
    letters = word.rstrip(".")
    if letters in _SPELLED_COMMANDS:
        return _SPELLED_COMMANDS[letters]
    if letters in FUNCTIONS:
        return rf"\{letters} "
    is_product = (
        letters in PRODUCTS
        or (letters.isupper() and len(letters) < 5)
        or (len(letters) < 3 and letters.lower() not in SHORT_WORDS)
    )
    return word if letters.isascii() and is_product else rf"\text{{{letters}}}"


def _parse_groups(latex: str) -> list[Node]:
    """Returns the nodes of the text, without dollars and other math delimiters."""
    levels: list[list[Node]] = [[]]
    for token in _TOKEN.findall(latex):
        if token == "{":
            levels.append([])
            if len(levels) > _MAX_BRACE_DEPTH:
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


def _rewrite(nodes: list[Node]) -> list[Node]:
    """Returns the nodes without fonts, sizes and spacing, and with braces around each argument."""
    rewritten: list[Node] = []
    stack = nodes[::-1]  # the next node is its last element
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            rewritten.append(_rewrite(node))
            continue
        node = _SYNONYMS.get(node, node)
        name = node[1:]
        if node in _SPACING:
            rewritten.append(" ")
        elif node == r"\!":
            while stack and stack[-1] == " ":
                stack.pop()
        elif node[0] != "\\" or (len(node) < 3 and node not in _SYNONYMS):
            rewritten.append(node)
            if node in "^_":
                rewritten.append(_pop_argument(stack))
        elif name in IGNORED_COMMANDS:
            if name in ("left", "right") and stack and stack[-1] == ".":
                stack.pop()
        elif name in ("color", "textcolor") and stack and isinstance(stack[-1], list):
            stack.pop()
        elif name in IGNORED_COMMANDS_WITH_ARGUMENT:
            _pop_argument(stack)
        elif name in FONTS:
            rewritten += _wrap_text(_pop_argument(stack))
        elif node == r"\sqrt":
            rewritten += [node, *_pop_root_index(stack), _pop_argument(stack)]
        elif node in _TWO_ARGUMENTS:
            rewritten += [node, _pop_argument(stack), _pop_argument(stack)]
        else:
            rewritten.append(node)
    return rewritten


def _pop_argument(stack: list[Node]) -> list[Node]:
    """Removes the next argument from `stack` and returns it.

    An argument is a group in braces or parentheses, a command with its arguments, or a character.
    """
    while stack and stack[-1] == " ":
        stack.pop()
    if not stack:
        return []
    node = stack.pop()
    if isinstance(node, list):
        return _rewrite(node)
    if node == "(":
        return _rewrite(_pop_until_closed(stack, "(", ")"))
    if _SYNONYMS.get(node, node) in _TWO_ARGUMENTS:
        return [_SYNONYMS.get(node, node), _pop_argument(stack), _pop_argument(stack)]
    if node == r"\sqrt":
        return [node, *_pop_root_index(stack), _pop_argument(stack)]
    if node[1:] in FONTS:
        return _wrap_text(_pop_argument(stack))
    return _rewrite([node])


def _pop_root_index(stack: list[Node]) -> list[Node]:
    """Removes the index of a root, [n], from `stack` and returns it; empty if there is none."""
    if not stack or stack[-1] != "[":
        return []
    stack.pop()
    return ["[", *_rewrite(_pop_until_closed(stack, "[", "]")), "]"]


def _pop_until_closed(stack: list[Node], opening: str, closing: str) -> list[Node]:
    """Removes the nodes up to the closing bracket from `stack`, or all if there is none, and returns them."""
    inside: list[Node] = []
    depth = 1
    while stack:
        node = stack.pop()
        depth += (node == opening) - (node == closing)
        if not depth:
            break
        inside.append(node)
    return inside


def _wrap_text(content: list[Node]) -> list[Node]:
    r"""Returns words in `\text{}`, and any other content unchanged."""
    words = _to_text(content).replace("{", "").replace("}", "")
    if words in ("lcm", "cis"):
        return [rf"\operatorname{{{words}}}"]
    if words.strip().lower() in _SPELLED_COMMANDS:
        return [_SPELLED_COMMANDS[words.strip().lower()].strip(), " "]
    letters = _WORD.findall(words)
    if _STARTS_WITH_NUMBER.match(words):
        return list(_WORDS_AFTER_NUMBER.sub(lambda match: rf"\text{{{match.group()}}}", words))
    if words.strip() in _CURRENCIES or _UNIT.fullmatch(words):
        return [rf"\text{{{words}}}"]
    if "\\" in words or not any(len(word) > 1 for word in letters):
        return content
    if len(letters) == 1 and letters[0] == words.strip() and words.strip() in FUNCTIONS:
        return [f"\\{words.strip()}", " "]
    return [rf"\text{{{words}}}"]


def _to_text(nodes: list[Node]) -> str:
    """Returns the LaTeX of the nodes."""
    pieces: list[str] = []
    for node in nodes:
        if isinstance(node, list):
            pieces.append(f"{{{_to_text(node)}}}")
            continue
        if pieces and pieces[-1][0] == "\\" and pieces[-1][-1].isalpha() and node[0].isalpha():
            pieces.append(" ")
        pieces.append(node)
    return "".join(pieces)
