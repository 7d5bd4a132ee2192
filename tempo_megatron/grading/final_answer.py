r"""Where a response states its final answer. Every function takes time linear in the text.

A response is held to its last statement: the last `\boxed{}`, or what follows the last "answer is" or "Answer:".
"""

from __future__ import annotations

import re

from tempo_megatron.grading.statements import answer_anchors

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)(?=\s*\{)")
_TRAILING = " \t\n.,;\\"
_LONGEST = 500
_DISPLAY = re.compile(r"^(?:\s|\\\[(?=\s)|\$\$(?=\s))+")
_DENIES = re.compile(r"\b(?:not|cannot|never)\b|n't\b", re.IGNORECASE)
_WORDS = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+")
_PLACEHOLDER = re.compile(
    r"(?:\\text\{)?(?:\.\.\.|\\ldots|\\dots|(?:your |the )?(?:final )?answer(?: here)?|\u2026)\}?", re.IGNORECASE
)
_OPERATORS = frozenset(["+", "-", "*", "/", r"\cdot", r"\times"])
_CALCULATION = re.compile(r"[a-zA-Z] ?(?:[-+*/]|\\cdot|\\times) ?[a-zA-Z][^=]{0,40}=")
_NEIGHBORHOOD = 40
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
_NOT = r"\text{not }"
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
    r"""Contents of the boxes that end the response: the last one that is not empty, and those that stand with it.

    Two boxes stand together when nothing but connectives ("or", "and", "the other answer is"), single letters (x = ),
    numbers and punctuation is between them. "The answer is" without a hedge, and a calculation (a + b = ), begin a new
    answer. Contents that repeat are given once. A last box that is never closed reaches to the end of its line. A box
    that only shows where an answer goes (`\boxed{...}`, `\boxed{answer}`) is none. One empty text where the last box
    takes the answer back: it is empty or a question mark, and words stand before it.
    """
    spans = [span for span in _boxes(text) if not _PLACEHOLDER.fullmatch(text[span[1] : span[2]].strip())]
    while spans and _is_empty(text[spans[-1][1] : spans[-1][2]]):
        start = spans.pop()[0]
        if not spans or re.search(r"\w", text[spans[-1][2] : start]):
            return [""]
    spans = [span for span in spans if not _is_empty(text[span[1] : span[2]])]
    closing: list[str] = []
    follower = len(text)
    for start, begin, end in reversed(spans):
        between = text[end:follower]
        operand = len(closing) > 1 and between.strip("} \t\n$") in _OPERATORS
        if operand:
            closing.pop(0)
        elif closing and not _connects(between):
            break
        content = _with_neighbors(text, start, _trimmed(_BOX_COMMAND.sub("", text[begin:end]).strip()), end)
        if content not in closing and not operand:
            closing.insert(0, content)
        follower = start
    return closing


def _with_neighbors(text: str, start: int, content: str, end: int) -> str:
    r"""The content with what changes it from outside: a sign or a denial before the box, a power or words behind it.

    An operand of a formula (`2\boxed{7}`, `\sqrt{\boxed{7}}`, `\boxed{7}+1`) is denied: the formula is not its value.
    """
    left = text[max(0, start - _NEIGHBORHOOD) : start]
    reach = end, end + _NEIGHBORHOOD
    is_operand = _OPERAND_BEFORE.search(left) and not _BLANK_OF_EQUATION.match(text, *reach)
    if is_operand or _OPERAND_AFTER.match(text, *reach):
        return _NOT + content
    before = _CHANGED_BEFORE.search(left)
    after = _CHANGED_AFTER.match(text, *reach)
    denied = before and before.group(1)[-1].isalpha() and not before.group(1).startswith("\\")
    prefix = "" if not before else _NOT if denied else before.group(1)
    suffix = "" if not after else after.group(1) or rf"\text{{ {after.group(2)}}}"
    return f"{prefix} {content}{suffix}".strip()


def _trimmed(content: str) -> str:
    """Without punctuation at its end; three dots mean that something goes on."""
    return content if content.endswith("...") else content.rstrip(_TRAILING)


def _is_empty(content: str) -> bool:
    return r"\{" not in content and not content.strip(_TRAILING + "{}?")


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(start of the command, start of the content, end of the content) of each outermost box, in order."""
    found: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []
    for token in _BRACES.finditer(text):
        mark = token.group()
        if mark.endswith("{") and len(mark) > 2:
            open_braces.append((token.start(), token.end()))
        elif mark == "{":
            open_braces.append(None)
        elif mark == "}" and open_braces:
            box = open_braces.pop()
            if box:
                while found and found[-1][0] > box[0]:  # boxes inside this one
                    found.pop()
                found.append((*box, token.start()))
    unclosed = [box for box in open_braces if box and (not found or box[0] > found[-1][0])]
    if unclosed:
        start, begin = unclosed[0]
        line_end = text.find("\n", begin)
        content = text[begin : len(text) if line_end < 0 else line_end].rstrip(" .$")
        content = content.removesuffix(r"\)").removesuffix(r"\]")
        found.append((start, begin, begin + len(content)))
    return found


def _connects(between: str) -> bool:
    if len(between) > 200 or _CALCULATION.search(between):
        return False
    if _NEW_ANSWER.search(between) and not _HEDGE.search(between):
        return False
    return all(_CONNECTIVES.fullmatch(word.lstrip("\\").lower()) for word in _WORDS.findall(between))


def stated(text: str) -> list[str]:
    """What follows each "answer is" or "Answer:", in any language that choice and free read, first to last.

    Each up to its line's end, and no longer than 500 characters. Where "answer" is a heading it is the next line
    that is not blank. A denial ("the answer cannot be") states "".
    """
    return [
        "" if _DENIES.search(anchor.group()) else _line_after(text, anchor.end()) for anchor in answer_anchors(text)
    ]


def _line_after(text: str, start: int) -> str:
    following = _DISPLAY.sub("", text[start : start + _LONGEST])
    return following.partition("\n")[0].strip()


def last_line(text: str) -> str:
    """The last line that is not blank, stripped."""
    return text.rstrip().rpartition("\n")[2].strip()


def free_form(text: str) -> str:
    """The final answer of a response in no particular form: in `<answer>` tags, else in boxes, else all of it."""
    before, closing, _ = text.rpartition("</answer>")
    _, opening, tagged = before.rpartition("<answer>")
    if opening and closing:
        return tagged.strip()
    return ", ".join(closing_boxes(text)) or text.strip()
