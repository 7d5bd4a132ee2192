"""A documented field of a group of settings."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

_ENDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


@dataclass(frozen=True)
class Bounds:
    """Between which ends a number lies; None: there is no such end."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """False for what is no number, too."""
        return all(_ENDS[name](value, end) for name, end in self._ends().items())

    def __str__(self) -> str:
        return " and ".join(f"{name.replace('_', ' ')} {end:g}" for name, end in self._ends().items())

    def _ends(self) -> dict[str, float]:
        return {name: end for name, end in asdict(self).items() if end is not None}


def setting(default: Any, help: str, **ends: float) -> Any:
    """A dataclass field with its meaning (and unit) attached, and the ends of its `Bounds`; mutable defaults are copied
    for every instance."""
    metadata = {"help": help, "bounds": Bounds(**ends)}
    if isinstance(default, (list, dict)) or is_dataclass(default):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)
