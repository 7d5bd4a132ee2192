"""Steps that a backtracking engine takes over a pattern: they do not depend on the machine, and time does.

The engine is Python's own in outline: it tries alternatives in order, gives back what a repetition took, and has no
memory. Results come from `re` itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

import pytest

Continuation = Callable[[int], int | None]
_CATEGORIES = {
    op.CATEGORY_DIGIT: re.compile(r"\d"),
    op.CATEGORY_NOT_DIGIT: re.compile(r"\D"),
    op.CATEGORY_SPACE: re.compile(r"\s"),
    op.CATEGORY_NOT_SPACE: re.compile(r"\S"),
    op.CATEGORY_WORD: re.compile(r"\w"),
    op.CATEGORY_NOT_WORD: re.compile(r"\W"),
}
_SINGLE = {op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN}


class StepCounter:
    """The steps of all patterns of some modules since it was installed."""

    def __init__(self) -> None:
        self.steps = 0

    def install(self, patch: pytest.MonkeyPatch, modules: list[ModuleType]) -> None:
        """Put a counting pattern in the place of each compiled pattern that a module has by name."""
        sys.setrecursionlimit(1_000_000)
        for module in modules:
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    patch.setattr(module, name, _CountedPattern(value, self))


def steps(pattern: re.Pattern[str], text: str) -> int:
    """The steps of finding all matches of one pattern."""
    sys.setrecursionlimit(1_000_000)
    counter = StepCounter()
    for _ in _CountedPattern(pattern, counter).finditer(text):
        pass
    return counter.steps


class _CountedPattern:
    def __init__(self, pattern: re.Pattern[str], counter: StepCounter) -> None:
        self._pattern = pattern
        self._tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE).data
        self._counter = counter
        self._taken: dict[Any, bool] = {}

    def match(self, text: str, *bounds: int) -> re.Match[str] | None:
        self._count(text, bounds[0] if bounds else 0)
        return self._pattern.match(text, *bounds)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        self._run(text, 0, lambda end: end if end == len(text) else None)
        return self._pattern.fullmatch(text)

    def search(self, text: str, *bounds: int) -> re.Match[str] | None:
        match = self._pattern.search(text, *bounds)
        self._count_until(text, bounds[0] if bounds else 0, match)
        return match

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        start = 0
        for match in self._pattern.finditer(text):
            self._count_until(text, start, match)
            start = max(match.end(), match.start() + 1)
            yield match
        self._count_until(text, start, None)

    def findall(self, text: str) -> list[Any]:
        list(self.finditer(text))
        return self._pattern.findall(text)

    def sub(self, replacement: Any, text: str, count: int = 0) -> str:
        if count:
            self.search(text)
        else:
            list(self.finditer(text))
        return self._pattern.sub(replacement, text, count=count)

    def split(self, text: str) -> list[Any]:
        list(self.finditer(text))
        return self._pattern.split(text)

    def _count_until(self, text: str, start: int, match: re.Match[str] | None) -> None:
        """Count an attempt at each position, from `start` to where the match is or to the text's end."""
        for position in range(start, match.start() + 1 if match else len(text) + 1):
            end = self._count(text, position)
            assert (end is not None) == (match is not None and position == match.start()), (self._pattern, position)

    def _count(self, text: str, start: int) -> int | None:
        return self._run(text, start, lambda end: end)

    def _run(self, text: str, start: int, then: Continuation) -> int | None:
        attempt = _Attempt(text, self._counter, self._taken)
        return attempt.sequence(self._tree, 0, start, self._pattern.flags, then)


class _Attempt:
    """One attempt of a pattern at one position of a text. Each method returns where the match ends, or None."""

    def __init__(self, text: str, counter: StepCounter, taken: dict[Any, bool]) -> None:
        self._text = text
        self._counter = counter
        self._taken = taken

    def sequence(self, nodes: list[Any], index: int, start: int, flags: int, then: Continuation) -> int | None:
        self._counter.steps += 1
        if index == len(nodes):
            return then(start)
        kind, argument = nodes[index]

        def follow(end: int) -> int | None:
            return self.sequence(nodes, index + 1, end, flags, then)

        if kind in _SINGLE:
            return follow(start + 1) if self._takes(kind, argument, start, flags) else None
        if kind is op.AT:
            return follow(start) if self._holds(argument, start, flags) else None
        if kind is op.BRANCH:
            for branch in argument[1]:
                end = self.sequence(branch.data, 0, start, flags, follow)
                if end is not None:
                    return end
            return None
        if kind is op.SUBPATTERN:
            _, added, removed, inner = argument
            return self.sequence(inner.data, 0, start, (flags | added) & ~removed, follow)
        if kind in (op.ASSERT, op.ASSERT_NOT):
            direction, inner = argument
            begin = start if direction > 0 else start - inner.getwidth()[0]
            holds = begin >= 0 and self.sequence(inner.data, 0, begin, flags, lambda end: end) is not None
            return follow(start) if holds == (kind is op.ASSERT) else None
        if kind is op.ATOMIC_GROUP:
            end = self.sequence(argument.data, 0, start, flags, lambda end: end)
            return None if end is None else follow(end)
        lowest, highest, inner = argument
        if kind is op.POSSESSIVE_REPEAT:
            end = self._repeat(inner.data, lowest, highest, start, flags, True, lambda end: end)
            return None if end is None else follow(end)
        assert kind in (op.MAX_REPEAT, op.MIN_REPEAT), kind
        return self._repeat(inner.data, lowest, highest, start, flags, kind is op.MAX_REPEAT, follow)

    def _repeat(
        self, inner: list[Any], lowest: int, highest: Any, start: int, flags: int, greedy: bool, then: Continuation
    ) -> int | None:
        if len(inner) == 1 and inner[0][0] in _SINGLE:
            return self._repeat_single(inner[0], lowest, highest, start, flags, greedy, then)

        def again(count: int, begin: int) -> int | None:
            def more() -> int | None:
                if highest is not op.MAXREPEAT and count >= highest:
                    return None
                return self.sequence(
                    inner, 0, begin, flags, lambda end: again(count + 1, end) if end > begin or count < lowest else None
                )

            if count < lowest:
                return more()
            end = more() if greedy else then(begin)
            return end if end is not None else then(begin) if greedy else more()

        return again(0, start)

    def _repeat_single(
        self, node: Any, lowest: int, highest: Any, start: int, flags: int, greedy: bool, then: Continuation
    ) -> int | None:
        kind, argument = node
        most = len(self._text) - start if highest is op.MAXREPEAT else int(highest)
        count = 0
        while (greedy or count < lowest) and count < most and self._takes(kind, argument, start + count, flags):
            count += 1
            self._counter.steps += 1
        while count >= lowest:
            end = then(start + count)
            if end is not None:
                return end
            if greedy:
                count -= 1
            elif count < most and self._takes(kind, argument, start + count, flags):
                count += 1
            else:
                return None
        return None

    def _takes(self, kind: Any, argument: Any, position: int, flags: int) -> bool:
        if position >= len(self._text):
            return False
        character = self._text[position]
        key = (kind, argument if isinstance(argument, int) else id(argument), character, flags)
        if key not in self._taken:
            self._taken[key] = _accepts(kind, argument, character, flags)
        return self._taken[key]

    def _holds(self, place: Any, position: int, flags: int) -> bool:
        text, multiline = self._text, flags & re.MULTILINE
        if place in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return position == 0 or bool(multiline and text[position - 1] == "\n")
        if place is op.AT_END:
            return text[position:] in ("", "\n") if not multiline else text[position : position + 1] in ("", "\n")
        assert place in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY), place
        sides = [bool(re.fullmatch(r"\w", text[max(side, 0) : side + 1])) for side in (position - 1, position)]
        return (sides[0] != sides[1]) == (place is op.AT_BOUNDARY)


def _accepts(kind: Any, argument: Any, character: str, flags: int) -> bool:
    cases = {character, character.lower(), character.upper()} if flags & re.IGNORECASE else {character}
    if kind is op.LITERAL:
        return chr(argument) in cases
    if kind is op.NOT_LITERAL:
        return chr(argument) not in cases
    if kind is op.ANY:
        return character != "\n" or bool(flags & re.DOTALL)
    negated = argument[0][0] is op.NEGATE
    return any(_is_in(item, case) for item in argument[negated:] for case in cases) != negated


def _is_in(item: Any, character: str) -> bool:
    kind, argument = item
    if kind is op.LITERAL:
        return ord(character) == argument if len(character) == 1 else False
    if kind is op.RANGE:
        return len(character) == 1 and argument[0] <= ord(character) <= argument[1]
    return bool(_CATEGORIES[argument].fullmatch(character))
