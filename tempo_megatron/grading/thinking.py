"""Removes a response's thinking before any grader reads it: thinking is not part of the answer."""

from __future__ import annotations

import re
from collections.abc import Callable

_NAMES = r"think|thinking|thought|thoughts|reason|reasoning"
_OPENING = re.compile(rf"<(?:seed:)?(?:{_NAMES})>|<\|begin_of_thought\|>|\[THINK\]|◁think▷", re.IGNORECASE)
_CLOSING = re.compile(rf"</(?:seed:)?(?:{_NAMES})>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷", re.IGNORECASE)


def after_thinking(text: str) -> str:
    """Returns what follows the last tag that closes thinking, up to a tag that opens thinking again.

    A closing tag needs no opening tag, because the prompt may hold it. Thinking that is never closed has no answer
    after it. Blanks around the answer are removed. A response without thinking is returned unchanged.
    """
    answer_start = max((closing.end() for closing in _CLOSING.finditer(text)), default=0)
    opening = _OPENING.search(text, answer_start)
    answer = text[answer_start : opening.start()] if opening else text[answer_start:]
    return answer.strip() if answer_start or opening else text


def without_thinking[Result](read: Callable[..., Result]) -> Callable[..., Result]:
    """Returns the function with its first argument, a response, stripped of its thinking."""
    return lambda text, *arguments: read(after_thinking(text), *arguments)
