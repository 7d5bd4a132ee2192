"""Tensors that are too large to travel at once: their rows, a part at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TensorRows:
    """`rows` [n, ...] of a tensor [of, ...], from its row `first` on."""

    rows: Tensor
    first: int
    of: int


def whole(tensors: Iterable[tuple[str, Tensor | TensorRows]]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, those that come in parts put together; each is given out when its last part has come.

    Raises ValueError naming what has not come whole.
    """
    begun: dict[str, Tensor] = {}
    missing: dict[str, int] = {}
    for name, part in tensors:
        if isinstance(part, Tensor):
            yield name, part
            continue
        if name not in begun:
            begun[name] = part.rows.new_empty((part.of, *part.rows.shape[1:]))
            missing[name] = part.of
        begun[name][part.first : part.first + len(part.rows)] = part.rows
        missing[name] -= len(part.rows)
        if not missing[name]:
            yield name, begun.pop(name)
    if begun:
        rows = ", ".join(f"{missing[name]} of {name}" for name in begun)
        raise ValueError(f"rows that have not come: {rows}")
