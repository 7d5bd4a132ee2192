"""Rows end to end in micro-batches of a token budget, balanced over data-parallel ranks and pipeline micro-batches.

Padding stands at the ends of sequences, where causal attention never lets it be seen, and is no more than what FP8,
tensor and context parallelism need; no loss, statistic or budget counts it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from tempo_megatron.megatron.batch import Batch, moved


@dataclass(frozen=True)
class PackingRule:
    """How sequences may be laid out.

    budget: tokens of one micro-batch, padding included, over all context-parallel ranks; a longer sequence travels
    alone. sequence_multiple, total_multiple: what the length of a sequence and of a micro-batch must be divisible by.
    attention_cost: what one more token of context costs a token, as a share of what the token costs without any.
    """

    budget: int
    sequence_multiple: int
    total_multiple: int
    attention_cost: float

    def padded(self, length: int) -> int:
        return -(-length // self.sequence_multiple) * self.sequence_multiple

    def cost(self, length: int) -> float:
        """FLOPs of a sequence, in units of one token without attention."""
        return length * (1 + self.attention_cost * length)

    def deal(self, lengths: Sequence[int], ranks: int) -> list[list[list[int]]]:
        """Row indices of each micro-batch of each rank: as few micro-batches as fit, equally many a rank.

        The longest sequence first, each to the cheapest micro-batch that has room; then the costliest micro-batch first
        to the cheapest rank. Every rank runs its micro-batches from the costliest down: neighbors in a pipeline cost
        about the same. A micro-batch may be empty where there are fewer rows than ranks.
        """
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        fewest = -(-sum(map(self.padded, lengths)) // self.budget)
        count = -(-max(1, min(fewest, len(lengths))) // ranks) * ranks
        while (bins := self._fill(order, lengths, count)) is None:
            count += ranks
        bins.sort(key=lambda rows: -sum(self.cost(lengths[row]) for row in rows))
        dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
        costs = [(0.0, rank) for rank in range(ranks)]
        for start in range(0, count, ranks):
            cheapest = sorted(costs)
            for rows, (cost, rank) in zip(bins[start : start + ranks], cheapest, strict=True):
                dealt[rank].append(rows)
                costs[rank] = (cost + sum(self.cost(lengths[row]) for row in rows), rank)
        return dealt

    def _fill(self, order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]] | None:
        """The rows in `count` micro-batches, or None where they do not fit."""
        rows_of: list[list[int]] = [[] for _ in range(count)]
        cheapest = [(0.0, 0, number) for number in range(count)]
        for row in order:
            full = []
            while cheapest:
                cost, tokens, number = heapq.heappop(cheapest)
                if not rows_of[number] or tokens + self.padded(lengths[row]) <= self.budget:
                    break
                full.append((cost, tokens, number))
            else:
                return None
            rows_of[number].append(row)
            heapq.heappush(cheapest, (cost + self.cost(lengths[row]), tokens + self.padded(lengths[row]), number))
            for one in full:
                heapq.heappush(cheapest, one)
        return rows_of


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch as one context-parallel rank reads them: its part of each, end to end.

    A sequence is cut into 2 CP pieces, of which rank r reads pieces r and 2 CP - 1 - r: under a causal mask all ranks
    then have as much to attend to.
    """

    rows: Batch
    """no wider than the longest of them"""
    indices: Tensor
    """[rows] int64 of the batch that they were taken from"""
    tokens: Tensor
    """[tokens / CP] int64"""
    next_tokens: Tensor
    """[tokens / CP] int64: the token after each one in its row; 0 after the last"""
    boundaries: Tensor
    """[sequences + 1] int32: where each sequence begins, padding included, over all ranks; the last entry is the end"""
    longest: int
    """tokens of the longest sequence, padding included"""
    source: Tensor
    """[real tokens] int64: where the rows' tokens, row after row, lie in a column gathered over CP"""
    target: Tensor
    """[real tokens] int64: where the same tokens lie in the flattened rows"""
    preceded: Tensor
    """[real tokens - rows] int64: which of them are not the first of their row"""

    def to(self, device: torch.device) -> MicroBatch:
        """On a device, but for `indices`, which number rows of a batch on the host."""
        there = {"rows": self.rows.to(device), "indices": self.indices, "longest": self.longest}
        others = (field.name for field in fields(self) if field.name not in there)
        return MicroBatch(**there, **{name: moved(getattr(self, name), device) for name in others})  # type: ignore[arg-type]

    def to_rows(self, column: Tensor, about_next: bool) -> Tensor:
        """A column of values a token as rows: [tokens, ...] gathered over CP -> [rows, width, ...], 0 where there is no
        token. With `about_next` a value is about the token that follows, and is moved there: position 0 holds 0."""
        source, target = self.source, self.target
        if about_next:
            source, target = source[self.preceded - 1], target[self.preceded]
        rows = column.new_zeros((self.rows.tokens.numel(), *column.shape[1:]))
        filled = rows.index_copy(0, target, column.index_select(0, source))
        return filled.view(*self.rows.tokens.shape, *column.shape[1:])


def pack(batch: Batch, indices: Sequence[int], rule: PackingRule, cp_rank: int = 0, cp_size: int = 1) -> MicroBatch:
    """The given rows as a micro-batch of one context-parallel rank. Without rows it holds padding alone."""
    chosen = torch.tensor(list(indices), dtype=torch.int64)
    rows = batch.select(chosen)
    rows = rows.narrow(int(rows.lengths.max()) if len(chosen) else 1)
    lengths = [int(length) for length in rows.lengths]
    padded = [rule.padded(length) for length in lengths] or [0]
    padded[-1] += -sum(padded) % rule.total_multiple if sum(padded) else rule.total_multiple
    starts = torch.tensor([0, *padded]).cumsum(0)
    tokens, following = torch.zeros(int(starts[-1]), dtype=torch.int64), torch.zeros(int(starts[-1]), dtype=torch.int64)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths, strict=False)):
        tokens[start : start + length] = rows.tokens[row, :length]
        following[start : start + length - 1] = rows.tokens[row, 1:length]
    by_rank = [held_by(starts.tolist(), rank, cp_size) for rank in range(cp_size)]
    gathered = torch.cat(by_rank).argsort()
    real = [gathered[start : start + length] for start, length in zip(starts.tolist(), lengths, strict=False)]
    positions = torch.arange(rows.width)
    present = positions < rows.lengths[:, None]
    mine = by_rank[cp_rank]
    return MicroBatch(
        rows=rows,
        indices=chosen,
        tokens=tokens[mine],
        next_tokens=following[mine],
        boundaries=starts.to(torch.int32),
        longest=max(padded),
        source=torch.cat([*real, torch.zeros(0, dtype=torch.int64)]),
        target=present.flatten().nonzero()[:, 0],
        preceded=positions.expand(rows.rows, -1)[present].nonzero()[:, 0],
    )


def held_by(boundaries: Sequence[int], rank: int, ranks: int) -> Tensor:
    """Positions of the packed tokens that one context-parallel rank holds, in its order; `boundaries` as a list."""
    if ranks == 1:
        return torch.arange(boundaries[-1])
    parts = []
    for start, end in pairwise(boundaries):
        size = (end - start) // (2 * ranks)
        for piece in (rank, 2 * ranks - 1 - rank):
            parts.append(torch.arange(start + piece * size, start + (piece + 1) * size))
    return torch.cat(parts)
