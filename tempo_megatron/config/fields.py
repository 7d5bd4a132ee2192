"""Fields of settings, each with its meaning and its bounds."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, is_dataclass
from typing import Any

_COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


@dataclass(frozen=True)
class Bounds:
    """The bounds of a number. None means no such bound."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Whether a value is within the bounds. NaN never is."""
        return all(_COMPARISONS[name](value, bound) for name, bound in self._present().items())

    def __str__(self) -> str:
        return " and ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in self._present().items())

    def _present(self) -> dict[str, float]:
        return {name: bound for name, bound in vars(self).items() if bound is not None}


def setting(default: Any, help: str, **bounds: float) -> Any:
    """Returns a dataclass field with its meaning, which names the unit, and the `Bounds` of its value. Every instance
    gets a copy of a mutable default."""
    metadata = {"help": help, "bounds": Bounds(**bounds)}
    if isinstance(default, (list, dict)) or is_dataclass(default):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)
