"""Thinking is not the answer: what a response says before it answers is cut off, once, before any grader reads it."""

from __future__ import annotations

import re
from collections.abc import Callable

_NAMES = r"think|thinking|thought|thoughts|reason|reasoning"
_OPENING = re.compile(rf"<(?:seed:)?(?:{_NAMES})>|<\|begin_of_thought\|>|\[THINK\]|◁think▷", re.IGNORECASE)
_CLOSING = re.compile(rf"</(?:seed:)?(?:{_NAMES})>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷", re.IGNORECASE)


def after_thinking(text: str) -> str:
    """What follows the last tag that ends thinking, up to a tag that begins thinking anew.

    A prompt may have opened the thinking, so a closing tag needs no opening one. Thinking that is never closed has no
    answer behind it. Blanks between thinking and answer belong to neither; a response without thinking stays as it is.
    """
    thought_to = max((closing.end() for closing in _CLOSING.finditer(text)), default=0)
    opening = _OPENING.search(text, thought_to)
    answer = text[thought_to : opening.start()] if opening else text[thought_to:]
    return answer.strip() if thought_to or opening else text


def without_thinking[Result](read: Callable[..., Result]) -> Callable[..., Result]:
    """A function of a response and more that is given the response without its thinking."""
    return lambda text, *more: read(after_thinking(text), *more)
