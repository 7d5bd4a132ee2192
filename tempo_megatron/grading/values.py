"""What an answer can be once it is read. Each value writes itself in one form, from which it is read again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Opaque:
    """Words, or a formula that no rule reads. It equals nothing but the same text."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Quantity:
    """A formula that math-verify's parser reads, and the words beside it."""

    latex: str
    words: str = ""

    def __str__(self) -> str:
        return self.latex + (rf"\text{{ {self.words}}}" if self.words else "")


@dataclass(frozen=True)
class Based:
    """Digits in a base that is written."""

    digits: str
    base: int

    def __str__(self) -> str:
        return f"{self.digits}_{{{self.base}}}"


@dataclass(frozen=True)
class Sequence:
    """Values between brackets; without brackets ("") values that stand side by side.

    After the opening ":" it is a ratio or a time, and `closing` is a half of the day or "".
    """

    opening: str
    closing: str
    items: tuple[Value, ...]

    def __str__(self) -> str:
        if self.opening == ":":
            return ":".join(map(str, self.items)) + (rf"\text{{ {self.closing}}}" if self.closing else "")
        return self.opening + ", ".join(map(str, self.items)) + self.closing


@dataclass(frozen=True)
class Named:
    """A name and what it equals."""

    name: str
    value: Value

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class Relation:
    """Formulas with signs between them: one sign fewer than formulas."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]

    def __str__(self) -> str:
        joined = (f"{sign} {side}" for sign, side in zip(self.signs, self.sides[1:], strict=True))
        return self.sides[0] + "".join(joined)


@dataclass(frozen=True)
class Combination:
    r"""Sets joined by `\\cup`, `\\cap` or `\\setminus`, from left to right."""

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
class Readings:
    """Values that the same text may stand for: 100,200 is one number or two."""

    values: tuple[Value, ...]
    text: str

    def __str__(self) -> str:
        return self.text


Value = Opaque | Quantity | Based | Sequence | Named | Relation | Combination | Readings
