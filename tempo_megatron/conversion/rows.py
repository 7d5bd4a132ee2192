"""Tensors that are too large to send at once travel as blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TensorRows:
    """A block of consecutive rows of a larger tensor."""

    rows: Tensor
    """The rows, [n, ...]."""
    first: int
    """The index of the block's first row in the tensor."""
    total_rows: int
    """The number of rows of the tensor."""


def assemble_tensors(tensors: Iterable[tuple[str, Tensor | TensorRows]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the same tensors by name, with blocks of rows joined. A tensor follows its last block.

    Raises ValueError that names every tensor with missing rows.
    """
    incomplete: dict[str, Tensor] = {}
    missing_rows: dict[str, int] = {}
    for name, part in tensors:
        if isinstance(part, Tensor):
            yield name, part
            continue
        if name not in incomplete:
            incomplete[name] = part.rows.new_empty((part.total_rows, *part.rows.shape[1:]))
            missing_rows[name] = part.total_rows
        incomplete[name][part.first : part.first + len(part.rows)] = part.rows
        missing_rows[name] -= len(part.rows)
        if not missing_rows[name]:
            yield name, incomplete.pop(name)
    if incomplete:
        rows = ", ".join(f"{missing_rows[name]} of {name}" for name in incomplete)
        raise ValueError(f"missing rows: {rows}")
