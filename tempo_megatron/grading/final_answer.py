r"""Where a response states its final answer. Every function takes time linear in the text.

A response is held to its last statement: the last `\boxed{}`, or what follows the last "answer is" or "Answer:".
"""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)(?=\s*\{)")
_TRAILING = " \t\n.,;\\"
_LONGEST = 500
_STATES = r"\b[^.\n:=]{0,60}?(?:\bis\b|\bare\b|\bbe\b|[:=])[ *:]*"
_ANSWER_IS = re.compile(rf"\banswers?{_STATES}", re.IGNORECASE)
_CHOICE_IS = re.compile(rf"\b(?:answers?|options?|choices?){_STATES}", re.IGNORECASE)
_WORDS = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+")
_CONNECTIVES = re.compile(
    r"[a-z]|also|alternatively|and|another|answers?|are|be|could|either|equivalently|is|it|may|maybe|might|or|other"
    r"|perhaps|possibly|solutions?|text|that|the|quad"
)


def closing_boxes(text: str) -> list[str]:
    r"""Contents of the boxes that end the response: the last one that is not empty, and those that stand with it.

    Two boxes stand together when nothing but connectives ("or", "and", "the other answer is"), single letters (x = ),
    numbers and punctuation is between them. Contents that repeat are given once. A last box that is never closed
    reaches to the end of its line.
    """
    spans = [span for span in _boxes(text) if text[span[1] : span[2]].strip(_TRAILING + "{}")]
    closing: list[str] = []
    follower = len(text)
    for start, begin, end in reversed(spans):
        if closing and not _connects(text[end:follower]):
            break
        content = _BOX_COMMAND.sub("", text[begin:end]).strip().rstrip(_TRAILING)
        if content not in closing:
            closing.insert(0, content)
        follower = start
    return closing


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
    if len(between) > 200:
        return False
    return all(_CONNECTIVES.fullmatch(word.lstrip("\\").lower()) for word in _WORDS.findall(between))


def stated(text: str, choices: bool = False) -> list[str]:
    """What follows each "answer is" or "Answer:" (with `choices` also "option is", "choice:"), first to last.

    Each up to its line's end, and no longer than 500 characters.
    """
    ends = (found.end() for found in (_CHOICE_IS if choices else _ANSWER_IS).finditer(text))
    return [text[end : end + _LONGEST].lstrip().partition("\n")[0].strip() for end in ends]


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
