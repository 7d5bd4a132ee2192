"""Packs rows into micro-batches of a token budget, balanced over data-parallel ranks and pipeline micro-batches.

Rows are concatenated without padding between them, except what FP8, tensor and context parallelism need. Padding
stands at the ends of sequences, where the causal mask hides it. No loss and no statistic counts it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int32, Int64, Shaped
from torch import Tensor

from tempo_megatron.config import Config, Fp8, Numerics
from tempo_megatron.megatron.batch import Batch, to_device
from tempo_megatron.megatron.topology import Topology

DealtRows = list[list[list[int]]]
"""The row indices of each micro-batch of each data-parallel rank."""


@dataclass(frozen=True)
class PackingRule:
    """How sequences are packed."""

    budget: int
    """Tokens of one micro-batch over all context-parallel ranks, with padding. A longer sequence is packed alone."""
    sequence_multiple: int
    """The length of a sequence is padded to a multiple of this."""
    total_multiple: int
    """The length of a micro-batch is padded to a multiple of this."""
    attention_cost: float
    """The cost of one more token of context for a token, as a share of the token's cost without context."""
    least_total: int = 1
    """A micro-batch is padded to at least so many tokens."""
    experts: int = 1
    """The experts of a layer, over which tokens without routes are spread; 1 for a dense model."""
    count_multiple: int = 1
    """The number of micro-batches of a data-parallel rank is a multiple of this."""

    def padded(self, length: int) -> int:
        """Returns the padded length of a sequence."""
        return -(-length // self.sequence_multiple) * self.sequence_multiple

    def cost(self, length: int) -> float:
        """Returns the FLOPs of a sequence, in units of one token without attention."""
        return length * (1 + self.attention_cost * length)

    def deal(self, lengths: Sequence[int], ranks: int) -> DealtRows:
        """Returns the row indices of each micro-batch of each rank.

        There are as few micro-batches as budget and `count_multiple` allow, and equally many per rank. Sequences are
        assigned from the longest to the shortest, each to the cheapest micro-batch with room. Micro-batches are then
        assigned from the costliest down, each to the cheapest rank. Every rank runs its micro-batches from the
        costliest down, so neighbors in a pipeline cost about the same. If rows are fewer, some micro-batches are empty.
        """
        step = ranks * self.count_multiple
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        fewest = -(-sum(map(self.padded, lengths)) // self.budget)
        count = -(-max(1, min(fewest, len(lengths))) // step) * step
        while (bins := self._fill(order, lengths, count)) is None:
            count += step
        bins.sort(key=lambda rows: -sum(self.cost(lengths[row]) for row in rows))
        assigned: DealtRows = [[] for _ in range(ranks)]
        costs = [(0.0, rank) for rank in range(ranks)]
        for start in range(0, count, ranks):
            cheapest = sorted(costs)
            for rows, (cost, rank) in zip(bins[start : start + ranks], cheapest, strict=True):
                assigned[rank].append(rows)
                costs[rank] = (cost + sum(self.cost(lengths[row]) for row in rows), rank)
        return assigned

    def _fill(self, order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]] | None:
        """Returns the rows of `count` micro-batches, or None if the rows do not fit."""
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
            for micro_batch in full:
                heapq.heappush(cheapest, micro_batch)
        return rows_of


def packing_rule(transformer: Any, config: Config, topology: Topology, micro_batch_tokens: int) -> PackingRule:
    """Returns how this run packs sequences. `transformer` is the model's TransformerConfig."""
    # FP8 matrix products need whole tiles of tokens on every rank.
    tile = {Fp8.none: 1, Fp8.blockwise: 128}.get(config.model.fp8, 16)
    split = topology.tensor_size if transformer.sequence_parallel else 1
    pieces = 2 * topology.context_size if topology.context_size > 1 else 1
    # Products of 256 rows and fewer may sum in another order than the generator's (docs/results/2026-11-30-exact.md).
    exact_tile, fewest = (128, 512) if config.numerics is Numerics.exact else (1, 1)
    multiple = math.lcm(tile * split * topology.context_size, pieces, exact_tile)
    longest = config.data.max_prompt_tokens + config.generation.max_response_tokens
    queries = transformer.kv_channels * transformer.num_attention_heads
    keys = 2 * transformer.kv_channels * transformer.num_query_groups
    channels = transformer.ffn_hidden_size
    if transformer.num_moe_experts:
        channels = transformer.moe_router_topk * transformer.moe_ffn_hidden_size
    layer_weights = transformer.hidden_size * (2 * queries + keys + 3 * channels)
    return PackingRule(
        budget=-(-(micro_batch_tokens or longest) // multiple) * multiple,
        sequence_multiple=pieces,
        total_multiple=multiple,
        least_total=fewest,
        experts=transformer.num_moe_experts or 1,
        # The interleaved schedule sends groups of as many micro-batches through a stage's chunks as there are stages.
        count_multiple=topology.pipeline_size if transformer.virtual_pipeline_model_parallel_size else 1,
        # Per token, the products with the weights take 2 FLOPs per weight. Attention takes, on average, 2 FLOPs per
        # query channel and token of the sequence.
        attention_cost=queries / layer_weights,
    )


_LENGTHS_PER_OCTAVE = 4
"""cuDNN plans an attention for each maximum length. Lengths are rounded up to this many values per factor of two, but
to multiples of 64 or more."""


@dataclass(frozen=True)
class MicroBatch:
    """The part of some rows that one context-parallel rank reads, packed into one sequence of tokens.

    Each row is cut into 2 CP pieces, and rank r reads pieces r and 2 CP - 1 - r. Under a causal mask all ranks then
    have the same amount of attention to compute.
    """

    rows: Batch
    """The rows, cut to the longest of them."""
    indices: Int64[Tensor, " rows"]
    """The indices of the rows in the batch that they come from."""
    tokens: Int64[Tensor, " local_tokens"]
    """The packed tokens; local_tokens = tokens / CP."""
    next_tokens: Int64[Tensor, " local_tokens"]
    """The token after each one in its row, 0 after the last."""
    boundaries: Int32[Tensor, " boundaries"]
    """The start of each sequence over all ranks, padding included, and the end: [sequences + 1]."""
    longest: int
    """The tokens of the longest sequence, padding included."""
    source: Int64[Tensor, " real_tokens"]
    """The positions of the rows' tokens, row after row, in a column that is gathered over CP."""
    target: Int64[Tensor, " real_tokens"]
    """The positions of the same tokens in the flattened rows."""
    preceded: Int64[Tensor, " preceded_tokens"]
    """The indices of those tokens that are not the first of their row: [real_tokens - rows]."""
    padding: Bool[Tensor, " local_tokens"]
    """Whether a packed token is padding, and belongs to no row."""
    routes: Shaped[Tensor, "local_tokens layers experts_per_token"] | None = None
    """The experts of each packed token; None where routers choose for themselves."""

    def to(self, device: torch.device) -> MicroBatch:
        """Returns the micro-batch on a device, except `indices`, which number rows of a batch on the host."""
        converted = {"rows": self.rows.to(device), "indices": self.indices, "longest": self.longest}
        others = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in converted}
        moved = {name: None if tensor is None else to_device(tensor, device) for name, tensor in others.items()}
        return MicroBatch(**converted, **moved)  # type: ignore[arg-type]

    def to_rows(self, column: Tensor, about_next: bool) -> Tensor:
        """Returns a column of values per token as rows: [tokens, ...] gathered over CP -> [rows, width, ...].

        Entries without a token are 0. With `about_next` a value describes the token that follows and moves there, and
        position 0 holds 0.
        """
        source, target = self.source, self.target
        if about_next:
            source, target = source[self.preceded - 1], target[self.preceded]
        rows = column.new_zeros((self.rows.tokens.numel(), *column.shape[1:]))
        filled = rows.index_copy(0, target, column.index_select(0, source))
        return filled.view(*self.rows.tokens.shape, *column.shape[1:])


def packed_sequences(micro: MicroBatch) -> Any:
    """Returns megatron-core's description of the sequences in a micro-batch, padding included."""
    from megatron.core.packed_seq_params import PackedSeqParams

    longest = micro.longest
    if micro.tokens.is_cuda:
        step = max(64, 2 ** (longest.bit_length() - 1) // _LENGTHS_PER_OCTAVE)
        longest = -(-longest // step) * step
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=micro.boundaries,
        cu_seqlens_kv=micro.boundaries,
        cu_seqlens_q_padded=micro.boundaries,
        cu_seqlens_kv_padded=micro.boundaries,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        pad_between_seqs=False,
    )


def pack(batch: Batch, indices: Sequence[int], rule: PackingRule, cp_rank: int = 0, cp_size: int = 1) -> MicroBatch:
    """Packs the rows at `indices` into a micro-batch of one context-parallel rank. Without rows it is padding."""
    row_indices = torch.tensor(list(indices), dtype=torch.int64)
    rows = batch.select(row_indices)
    rows = rows.narrow(int(rows.lengths.max()) if len(row_indices) else 1)
    lengths = [int(length) for length in rows.lengths]
    padded = [rule.padded(length) for length in lengths] or [0]
    total = max(sum(padded), rule.least_total)
    padded[-1] += -(-total // rule.total_multiple) * rule.total_multiple - sum(padded)
    starts = torch.tensor([0, *padded]).cumsum(0)
    tokens, following = torch.zeros(int(starts[-1]), dtype=torch.int64), torch.zeros(int(starts[-1]), dtype=torch.int64)
    padding = torch.ones(len(tokens), dtype=torch.bool)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths, strict=False)):
        padding[start : start + length] = False
        tokens[start : start + length] = rows.tokens[row, :length]
        following[start : start + length - 1] = rows.tokens[row, 1:length]
    by_rank = [context_rank_positions(starts.tolist(), rank, cp_size) for rank in range(cp_size)]
    gathered = torch.cat(by_rank).argsort()
    real = [gathered[start : start + length] for start, length in zip(starts.tolist(), lengths, strict=False)]
    positions = torch.arange(rows.width)
    present = positions < rows.lengths[:, None]
    local = by_rank[cp_rank]
    return MicroBatch(
        rows=rows,
        indices=row_indices,
        tokens=tokens[local],
        next_tokens=following[local],
        boundaries=starts.to(torch.int32),
        longest=max(padded),
        source=torch.cat([*real, torch.zeros(0, dtype=torch.int64)]),
        target=present.flatten().nonzero()[:, 0],
        preceded=positions.expand(rows.rows, -1)[present].nonzero()[:, 0],
        padding=padding[local],
        routes=_pack_routes(rows.routes or (), batch.routes[0], starts, rule.experts)[local] if batch.routes else None,
    )


def _pack_routes(routes: Sequence[Tensor], like: Tensor, starts: Tensor, experts: int) -> Tensor:
    """Returns the routes of packed rows over all ranks, [tokens, layers, experts per token].

    `like` has the layers, experts per token and dtype. A micro-batch without rows has routes too: otherwise its routers
    would replay those of the micro-batch before it. The last token of a row and padding have none, and no loss depends
    on their experts. They are spread evenly over all experts: token t gets k t to k t + k - 1 modulo `experts`, which
    differ.
    """
    layers, experts_per_token = like.shape[1:]
    spread = torch.arange(int(starts[-1]) * experts_per_token).view(-1, 1, experts_per_token) % experts
    packed = spread.to(like.dtype).expand(-1, layers, -1).contiguous()
    for start, row in zip(starts.tolist(), routes, strict=False):
        packed[start : start + len(row)] = row
    return packed


def context_rank_positions(boundaries: Sequence[int], rank: int, ranks: int) -> Tensor:
    """Returns the positions of the packed tokens that one context-parallel rank holds, in its order.

    `boundaries` are the starts of the sequences and the end.
    """
    if ranks == 1:
        return torch.arange(boundaries[-1])
    parts = []
    for start, end in pairwise(boundaries):
        size = (end - start) // (2 * ranks)
        for piece in (rank, 2 * ranks - 1 - rank):
            parts.append(torch.arange(start + piece * size, start + (piece + 1) * size))
    return torch.cat(parts)


def pad_columns(column: Tensor, width: int) -> Tensor:
    """Returns [rows, sequence, ...] padded with zeros to `width` positions."""
    padded = column.new_zeros((column.shape[0], width, *column.shape[2:]))
    padded[:, : column.shape[1]] = column
    return padded
