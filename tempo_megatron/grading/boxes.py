r"""The boxes (`\boxed{}`, `\fbox{}`) that end a response. Every function takes time linear in the text."""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)(?=\s*\{)")
_BOX_NAME = re.compile(r"\\(?:boxed|fbox)\b")
_TRAILING_CHARACTERS = " \t\n.,;\\"
_WORD_OR_COMMAND = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+")
_PLACEHOLDER = re.compile(
    r"(?:\\text\{)?(?:\.\.\.|\\ldots|\\dots|(?:your |the )?(?:final )?answer(?: here)?|\u2026)\}?", re.IGNORECASE
)
_OPERATORS = frozenset(["+", "-", "*", "/", r"\cdot", r"\times"])
_CALCULATION = re.compile(r"[a-zA-Z] ?(?:[-+*/]|\\cdot|\\times) ?[a-zA-Z][^=]{0,40}=")
_MAX_NEIGHBOR_CHARACTERS = 40
_MAX_CHARACTERS_BETWEEN = 200
_CHANGED_BEFORE = re.compile(
    r"(\\(?:ne|neq|not|lt|gt)(?![a-z])|≠|(?<=[=$(]) {0,2}-|(?<![\w)}$])-(?=$)|(?<=[\w)}] )[<>]|(?<=\$[a-zA-Z])[<>]"
    r"|(?:\bnot|n't|\bcannot|\bnever)(?: be| equal)?(?: to)?)[\s$]{0,9}(?:\\[(\[])?\s{0,9}$"
)
_OPERAND_BEFORE = re.compile(
    r"(?<![\w.])\d{1,9}(?:\.\d{1,9})?(?: ?(?:\\cdot|\\times|[+/]) ?)?$"
    r"|\\(?:sqrt|[dt]?frac|log|ln|sin|cos|tan)(?:\[\w\])? ?(?:\{[^{}]{0,20}\} ?)?(?:\{ ?)?$"
)
_OPERAND_AFTER = re.compile(
    r"\} ?(?:(?:\\cdot|\\times|[+/]|(?<=\})-) ?(?:\d{1,9}|[a-zA-Z](?![a-zA-Z]))(?![^$\n]{0,20}=)"
    r"|!(?=\s?(?:\$|\\[)\]])))"
)
_BLANK_OF_EQUATION = re.compile(r"\} ?=")
_DENIAL = r"\text{not }"
_CHANGED_AFTER = re.compile(
    r"\}(?:(\^\S{1,9}|[a-z](?![a-zA-Z]))|[\s$]{0,9}(?:\\[)\]])?\s{0,9}(?:\\text\{\s{0,9})?"
    r"((?:hundred|thousand|million|billion|trillion|dozen|percent)\b"
    r"|(?:is|was) (?:wrong|incorrect|false|not (?:the answer|right|correct|valid))\b"
    r"|hours?,? (?:and )?\d{1,2} |f(?:oo|ee)t,? (?:and )?\d{1,2} ))"
)
_NEW_ANSWER = re.compile(r"\banswers?\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"\b(?:also|alternatively|another|could|either|equivalently|may|maybe|might|or|other|perhaps|possibly)\b",
    re.IGNORECASE,
)
_CONNECTIVES = re.compile(
    r"[a-z]|also|alternatively|and|another|answers?|are|be|candidates?|cases?|could|either|equivalently|first|is|it|may"
    r"|maybe|might|options?|or|other|perhaps|second|possibly|solutions?|text|that|the|quad"
)


def closing_boxes(text: str) -> list[str]:
    r"""Returns the contents of the boxes that end the response: the last nonempty box, and those that belong to it.

    Two boxes belong together when only connectives ("or", "and", "the other answer is"), single letters (x = ),
    numbers and punctuation stand between them. "The answer is" without a hedge begins a new answer, and so does a
    calculation (a + b = ). Each content is listed once. A last box that is never closed ends with its line.
    A box that only shows where an answer goes (`\boxed{...}`, `\boxed{answer}`) is ignored.

    Returns [""] where the last box takes the answer back: the box is empty or a question mark, and words stand
    before it.
    """
    spans = [span for span in _boxes(text) if not _PLACEHOLDER.fullmatch(text[span[1] : span[2]].strip())]
    while spans and _is_empty(text[spans[-1][1] : spans[-1][2]]):
        start = spans.pop()[0]
        if not spans or re.search(r"\w", text[spans[-1][2] : start]):
            return [""]
    spans = [span for span in spans if not _is_empty(text[span[1] : span[2]])]
    contents: list[str] = []
    next_start = len(text)
    for start, begin, end in reversed(spans):
        between = text[end:next_start]
        is_operand = len(contents) > 1 and between.strip("} \t\n$") in _OPERATORS
        if is_operand:
            contents.pop(0)
        elif contents and not _connects(between):
            break
        inside = _without_final_punctuation(_BOX_COMMAND.sub("", text[begin:end]).strip())
        content = _with_neighbors(text, start, inside, end)
        if content not in contents and not is_operand:
            contents.insert(0, content)
        next_start = start
    return contents


def _with_neighbors(text: str, start: int, content: str, end: int) -> str:
    r"""Returns the content with what changes it from outside: a sign or denial before it, a power or words after it.

    A box that is an operand (`2\boxed{7}`, `\sqrt{\boxed{7}}`, `\boxed{7}+1`) gets a denial: the formula has another
    value than the box.
    """
    text_before = text[max(0, start - _MAX_NEIGHBOR_CHARACTERS) : start]
    bounds_after = end, end + _MAX_NEIGHBOR_CHARACTERS
    is_operand = _OPERAND_BEFORE.search(text_before) and not _BLANK_OF_EQUATION.match(text, *bounds_after)
    if is_operand or _OPERAND_AFTER.match(text, *bounds_after):
        return _DENIAL + content
    before = _CHANGED_BEFORE.search(text_before)
    after = _CHANGED_AFTER.match(text, *bounds_after)
    denied = before and before.group(1)[-1].isalpha() and not before.group(1).startswith("\\")
    prefix = "" if not before else _DENIAL if denied else before.group(1)
    suffix = "" if not after else after.group(1) or rf"\text{{ {after.group(2)}}}"
    return f"{prefix} {content}{suffix}".strip()


def _without_final_punctuation(content: str) -> str:
    """Returns the content without punctuation at its end. Three dots stay: they mean that the answer goes on."""
    return content if content.endswith("...") else content.rstrip(_TRAILING_CHARACTERS)


def _is_empty(content: str) -> bool:
    return r"\{" not in content and not content.strip(_TRAILING_CHARACTERS + "{}?")


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Returns (command start, content start, content end) of each outermost box, in order."""
    spans: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []
    for token in _BRACES.finditer(text):
        brace = token.group()
        if brace.endswith("{") and len(brace) > 2:
            open_braces.append((token.start(), token.end()))
        elif brace == "{":
            open_braces.append(None)
        elif brace == "}" and open_braces:
            box = open_braces.pop()
            if box:
                while spans and spans[-1][0] > box[0]:  # boxes inside this one
                    spans.pop()
                spans.append((*box, token.start()))
    unclosed = [box for box in open_braces if box and (not spans or box[0] > spans[-1][0])]
    if unclosed:
        start, begin = unclosed[0]
        line_end = text.find("\n", begin)
        content = text[begin : len(text) if line_end < 0 else line_end].rstrip(" .$")
        content = content.removesuffix(r"\)").removesuffix(r"\]")
        spans.append((start, begin, begin + len(content)))
    return spans


def _connects(between: str) -> bool:
    """Returns whether the text between two boxes makes them parts of one answer."""
    if len(between) > _MAX_CHARACTERS_BETWEEN or _CALCULATION.search(between):
        return False
    if _NEW_ANSWER.search(between) and not _HEDGE.search(between):
        return False
    return all(_CONNECTIVES.fullmatch(word.lstrip("\\").lower()) for word in _WORD_OR_COMMAND.findall(between))


def last_box_start(text: str) -> int:
    """Returns the index of the last box command, closed or not; -1 if there is none."""
    return max((box.start() for box in _BOX_NAME.finditer(text)), default=-1)
