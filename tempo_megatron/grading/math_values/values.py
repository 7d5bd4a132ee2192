"""The types of values that an answer can have.

`str` of a value is its canonical text, and `parser.parse_value` reads the same value from that text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UnparsedText:
    """Words, or a formula that no rule reads. It equals only the same text."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Quantity:
    """A formula that math-verify's parser reads, with its unit or other words."""

    latex: str
    words: str = ""

    def __str__(self) -> str:
        return self.latex + (rf"\text{{ {self.words}}}" if self.words else "")


@dataclass(frozen=True)
class BasedDigits:
    """Digits with an explicit base."""

    digits: str
    base: int

    def __str__(self) -> str:
        return f"{self.digits}_{{{self.base}}}"


@dataclass(frozen=True)
class ValueSequence:
    """Values in brackets, or a list without brackets, whose `opening` and `closing` are "".

    The opening ":" marks a ratio or a time of day. `closing` is then AM, PM or "".
    """

    opening: str
    closing: str
    items: tuple[Value, ...]

    def __str__(self) -> str:
        if self.opening == ":":
            return ":".join(map(str, self.items)) + (rf"\text{{ {self.closing}}}" if self.closing else "")
        return self.opening + ", ".join(map(str, self.items)) + self.closing


@dataclass(frozen=True)
class NamedValue:
    """A name and the value that it equals."""

    name: str
    value: Value

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class Relation:
    """An equation, an inequality, or a chain of them. There is one sign fewer than sides."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]

    def __str__(self) -> str:
        joined = (f"{sign} {side}" for sign, side in zip(self.signs, self.sides[1:], strict=True))
        return self.sides[0] + "".join(joined)


@dataclass(frozen=True)
class SetOperation:
    r"""Sets joined by `\cup`, `\cap` or `\setminus`, evaluated from left to right."""

    operands: tuple[Value, ...]
    signs: tuple[str, ...]

    def __str__(self) -> str:
        inequalities = isinstance(self.operands[0], Relation)
        words = {r"\cup": r"\text{ or }", r"\cap": r"\text{ and }"} if inequalities else {}
        joined = (
            f"{words.get(sign, sign)} {operand}" for sign, operand in zip(self.signs, self.operands[1:], strict=True)
        )
        return str(self.operands[0]) + "".join(joined)


@dataclass(frozen=True)
class AmbiguousValue:
    """The values that one text may have: 100,200 is one number or two."""

    values: tuple[Value, ...]
    text: str

    def __str__(self) -> str:
        return self.text


Value = UnparsedText | Quantity | BasedDigits | ValueSequence | NamedValue | Relation | SetOperation | AmbiguousValue
