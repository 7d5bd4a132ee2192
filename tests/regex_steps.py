"""Steps of a backtracking matcher over Python's regular expressions, which `re` itself does not count."""

from __future__ import annotations

import re
from collections.abc import Iterator
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

Items = list[tuple[Any, Any]]
_UNLIMITED = op.MAXREPEAT


def steps(pattern: re.Pattern[str], text: str) -> int:
    """Steps that finding all matches of the pattern in the text takes: characters and positions that are tried."""
    matcher = _Matcher(text, pattern.flags)
    items = list(parser.parse(pattern.pattern, pattern.flags))
    position = 0
    while position <= len(text):
        end = next(matcher.ends(items, 0, position), None)
        position = position + 1 if end is None else max(end, position + 1)
    return matcher.count


class _Matcher:
    def __init__(self, text: str, flags: int) -> None:
        self.text = text
        self.fold = bool(flags & re.IGNORECASE)
        self.multiline = bool(flags & re.MULTILINE)
        self.any = bool(flags & re.DOTALL)
        self.count = 0

    def ends(self, items: Items, index: int, start: int) -> Iterator[int]:
        """Where the items from `index` on can end, in the order of a greedy matcher."""
        if index == len(items):
            yield start
            return
        for end in self._one(*items[index], start):
            yield from self.ends(items, index + 1, end)

    def _one(self, kind: Any, value: Any, start: int) -> Iterator[int]:
        self.count += 1
        if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            if start < len(self.text) and self._fits(kind, value, self.text[start]):
                yield start + 1
        elif kind is op.BRANCH:
            for branch in value[1]:
                yield from self.ends(list(branch), 0, start)
        elif kind is op.SUBPATTERN:
            yield from self.ends(list(value[3]), 0, start)
        elif kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            yield from self._repeated(kind, *value, start)
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            direction, items = value
            begin = start if direction > 0 else start - items.getwidth()[0]
            holds = begin >= 0 and next(self.ends(list(items), 0, begin), None) is not None
            if holds == (kind is op.ASSERT):
                yield start
        elif kind is op.AT:
            if self._at(value, start):
                yield start
        else:
            raise NotImplementedError(kind)

    def _repeated(self, kind: Any, least: int, most: int, items: Any, start: int) -> Iterator[int]:
        single = len(items) == 1 and items[0][0] in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)
        assert single or most is not _UNLIMITED or items.getwidth()[0] > 0, "a repeat of nothing"
        ends = [start]
        if single:
            while (most is _UNLIMITED or len(ends) <= most) and next(self._one(*items[0], ends[-1]), None):
                ends.append(ends[-1] + 1)
            yield from ends[least:] if kind is op.MIN_REPEAT else reversed(ends[least:])
            return
        yield from self._rounds(kind, least, most, list(items), start, 0)

    def _rounds(self, kind: Any, least: int, most: int, items: Items, start: int, completed: int) -> Iterator[int]:
        if kind is op.MIN_REPEAT and completed >= least:
            yield start
        if most is _UNLIMITED or completed < most:
            for end in self.ends(items, 0, start):
                if end > start:
                    yield from self._rounds(kind, least, most, items, end, completed + 1)
        if kind is op.MAX_REPEAT and completed >= least:
            yield start

    def _fits(self, kind: Any, value: Any, char: str) -> bool:
        if kind is op.ANY:
            return self.any or char != "\n"
        if kind is op.IN:
            negated = value[0][0] is op.NEGATE
            return negated != any(self._is_in(*member, char) for member in value[negated:])
        return (kind is op.LITERAL) == self._is_in(op.LITERAL, value, char)

    def _is_in(self, kind: Any, value: Any, char: str) -> bool:
        chars = {char.lower(), char.upper()} if self.fold else {char}
        if kind is op.LITERAL:
            return chr(value) in chars
        if kind is op.RANGE:
            return any(value[0] <= ord(one) <= value[1] for one in chars if len(one) == 1)
        return bool(re.match({op.CATEGORY_SPACE: r"\s", op.CATEGORY_WORD: r"\w", op.CATEGORY_DIGIT: r"\d",
                              op.CATEGORY_NOT_SPACE: r"\S", op.CATEGORY_NOT_WORD: r"\W",
                              op.CATEGORY_NOT_DIGIT: r"\D"}[value], char))  # fmt: skip

    def _at(self, where: Any, position: int) -> bool:
        before, after = self.text[position - 1 : position], self.text[position : position + 1]
        if where is op.AT_BEGINNING:
            return position == 0 or (self.multiline and before == "\n")
        if where is op.AT_END:
            return position == len(self.text) or (self.multiline and after == "\n")
        at_boundary = bool(re.match(r"\w", before)) != bool(re.match(r"\w", after))
        return at_boundary == (where is op.AT_BOUNDARY)
