"""Token sequences as rows: what phases and losses work with. `packing` lays them end to end for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of token sequences, the same on every rank; token columns are [rows, sequence].

    tokens [rows, sequence] int64, zeros after each row's end; lengths [rows] int64, tokens of each row;
    response_mask [rows, sequence] bool, True at response tokens; columns: further tensors [rows, ...] that a loss needs
    beside the model's output.
    """

    tokens: Tensor
    lengths: Tensor
    response_mask: Tensor
    columns: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    def with_columns(self, **columns: Tensor) -> Batch:
        return replace(self, columns={**self.columns, **columns})

    def select(self, rows: Tensor) -> Batch:
        """The rows at the given indices [n] int64, in their order."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Batch(self.tokens[rows], self.lengths[rows], self.response_mask[rows], columns)

    def narrow(self, width: int) -> Batch:
        """The same rows without the positions from `width` on."""
        columns = {name: c[:, :width] if c.dim() > 1 else c for name, c in self.columns.items()}
        return Batch(self.tokens[:, :width], self.lengths, self.response_mask[:, :width], columns)

    def to(self, device: torch.device) -> Batch:
        columns = {name: moved(column, device) for name, column in self.columns.items()}
        tokens, lengths, mask = (moved(x, device) for x in (self.tokens, self.lengths, self.response_mask))
        return Batch(tokens, lengths, mask, columns)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device, without waiting for what the device has to do yet: only pinned memory is copied so."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def from_sequences(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Batch:
    """Prompts and their responses as rows as wide as the longest."""
    lengths = torch.tensor([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor([*prompt, *response])
        mask[row, len(prompt) : end] = True
    return Batch(tokens, lengths, mask, {})
