"""Padded sequences, and how they are dealt to data-parallel ranks and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of padded token sequences, the same on every rank until `deal`.

    tokens [rows, sequence] int64; response_mask [rows, sequence] bool, True at response tokens; columns: further
    tensors [rows, ...] that a loss needs beside the model's output.
    """

    tokens: Tensor
    response_mask: Tensor
    columns: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def with_columns(self, **columns: Tensor) -> Batch:
        return replace(self, columns={**self.columns, **columns})

    def select(self, rows: Tensor) -> Batch:
        """The rows at the given indices [n] int64, in their order."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Batch(self.tokens[rows], self.response_mask[rows], columns)

    def deal(self, rank: int, ranks: int, micro_batch_size: int) -> Batch:
        """The rows of one data-parallel rank: row i goes to rank i mod `ranks`.

        All ranks get equally many whole micro-batches; what is missing is filled with rows whose mask is empty,
        which losses count as nothing.
        """
        rows_a_rank = -(-self.rows // (ranks * micro_batch_size)) * micro_batch_size
        mine = torch.arange(rank, rows_a_rank * ranks, ranks)
        filler = mine >= self.rows
        dealt = self.select(torch.where(filler, 0, mine))
        dealt.response_mask[filler] = False
        return dealt

    def micro_batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.rows, size):
            yield self.select(torch.arange(start, start + size))

    def to(self, device: torch.device) -> Batch:
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return Batch(self.tokens.to(device), self.response_mask.to(device), columns)


def from_sequences(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], length_multiple: int = 1
) -> Batch:
    """Prompts and their responses as rows, padded with token 0 to the longest, rounded up to `length_multiple`.

    Padding follows the sequence, so that causal attention never sees it and the padding token does not matter.
    """
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    width = -(-longest // length_multiple) * length_multiple
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor([*prompt, *response])
        mask[row, len(prompt) : end] = True
    return Batch(tokens, mask, {})
