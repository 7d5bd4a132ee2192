"""Batches of token sequences as padded rows, for phases and losses. `packing` concatenates rows for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of token sequences, the same on every rank."""

    tokens: Int64[Tensor, "rows sequence"]
    """Token ids, 0 after each row's end."""
    lengths: Int64[Tensor, " rows"]
    """The number of tokens of each row."""
    response_mask: Bool[Tensor, "rows sequence"]
    """True at response tokens."""
    columns: dict[str, Tensor]
    """Other tensors [rows, ...] that a loss needs besides the model's output."""
    routes: tuple[Shaped[Tensor, "_read_tokens layers experts_per_token"], ...] | None = None
    """The experts that the generator chose for the tokens of each row but the last: [length - 1, layers, experts per
    token] integers, in host memory. None: routers choose for themselves."""

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    def with_columns(self, **columns: Tensor) -> Batch:
        """Returns the batch with these columns added or replaced."""
        return replace(self, columns={**self.columns, **columns})

    def select(self, rows: Int64[Tensor, " selected"]) -> Batch:
        """Returns the rows at these indices, in their order."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        routes = self.routes and tuple(self.routes[row] for row in rows.tolist())
        return Batch(self.tokens[rows], self.lengths[rows], self.response_mask[rows], columns, routes)

    def narrow(self, width: int) -> Batch:
        """Returns the same rows cut to the first `width` positions."""
        columns = {name: c[:, :width] if c.dim() > 1 else c for name, c in self.columns.items()}
        return Batch(self.tokens[:, :width], self.lengths, self.response_mask[:, :width], columns, self.routes)

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device, without routes."""
        columns = {name: to_device(column, device) for name, column in self.columns.items()}
        tokens, lengths, mask = (to_device(x, device) for x in (self.tokens, self.lengths, self.response_mask))
        return Batch(tokens, lengths, mask, columns)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor on a device. The copy does not wait for the device, which takes pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def from_sequences(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Batch:
    """Returns prompts with their responses as rows, padded to the longest."""
    lengths = torch.tensor([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor([*prompt, *response])
        mask[row, len(prompt) : end] = True
    return Batch(tokens, lengths, mask, {})
