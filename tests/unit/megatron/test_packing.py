"""Packing rows into micro-batches, and unpacking them."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.packing import PackingRule, context_rank_positions, pack

BATCH = from_sequences([[1, 2, 3], [4, 5], [6]], [[7, 8], [9, 10, 11], []])
ROWS = [2, 0, 1]


def rule(budget: int, **changes: float) -> PackingRule:
    return PackingRule(
        **{"budget": budget, "sequence_multiple": 1, "total_multiple": 1, "attention_cost": 0.0, **changes}
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("context_size", "multiple"), [(1, 1), (1, 16), (2, 8), (3, 48)])
def test_packed_tokens_are_unpacked_to_their_rows(context_size: int, multiple: int) -> None:
    """The concatenated columns of all context-parallel ranks become rows again. Values about the next token move to
    that token, and padding disappears."""
    packing = rule(100, sequence_multiple=1 if context_size == 1 else 2 * context_size, total_multiple=multiple)
    parts = [pack(BATCH, ROWS, packing, rank, context_size) for rank in range(context_size)]
    assert len({len(part.tokens) for part in parts}) == 1
    assert sum(len(part.tokens) for part in parts) % multiple == 0
    tokens, following = (torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "next_tokens"))
    expected = BATCH.tokens[ROWS]
    padding = torch.cat([part.padding for part in parts])
    assert int((~padding).sum()) == int(BATCH.lengths.sum()) and bool((tokens[~padding] > 0).all())
    for part in parts:
        assert torch.equal(part.rows.tokens, expected)
        assert torch.equal(part.to_rows(tokens, about_next=False), expected)
        shifted = part.to_rows(following, about_next=True)
        assert torch.equal(shifted[:, 1:], expected[:, 1:]) and not shifted[:, 0].any()
        assert part.to_rows(torch.stack([tokens, tokens], 1), about_next=True).shape == (3, 5, 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(("context_size", "multiple"), [(1, 1), (1, 16), (2, 8), (3, 48)])
def test_routes_follow_their_tokens(context_size: int, multiple: int, dtype: torch.dtype) -> None:
    """Every token but the last of a row has its own experts. The routes of a row have one entry less than its tokens.
    All other positions have experts that differ and are spread by position, so that no expert computes all padding."""
    layers = torch.arange(3)

    def experts(tokens: torch.Tensor) -> torch.Tensor:
        """Returns two experts for each token and layer."""
        first = 20 * layers + tokens[:, None]
        return torch.stack([first, first + 100], -1)

    routes = tuple(
        experts(row[: length - 1]).to(dtype) for row, length in zip(BATCH.tokens, BATCH.lengths, strict=True)
    )
    batch = replace(BATCH, routes=routes)
    packing = rule(
        100, sequence_multiple=1 if context_size == 1 else 2 * context_size, total_multiple=multiple, experts=5
    )
    routed = 0
    for rank in range(context_size):
        part = pack(batch, ROWS, packing, rank, context_size).to(torch.device("cpu"))
        assert part.routes is not None and part.routes.dtype == dtype and part.routes.shape[1:] == (3, 2)
        read = part.next_tokens > 0
        assert torch.equal(part.routes[read].long(), experts(part.tokens[read]))
        positions = context_rank_positions(part.boundaries.tolist(), rank, context_size)[~read]
        spread = torch.stack([2 * positions % 5, (2 * positions + 1) % 5], -1)
        assert torch.equal(part.routes[~read].long(), spread[:, None].expand(-1, 3, 2))
        routed += int(read.sum())
    assert routed == sum(map(len, routes))
    empty = pack(batch, [], packing, 0, context_size).routes
    assert empty is not None and empty.shape == (len(empty), 3, 2) and len(empty) > 0


@pytest.mark.parametrize(("least", "tokens"), [(1, 16), (16, 16), (17, 32), (512, 512)])
def test_a_micro_batch_is_padded_to_its_least_length(least: int, tokens: int) -> None:
    """Small products may sum in another order than the generator's, which `numerics: exact` would stop for."""
    packed = pack(BATCH, ROWS, rule(100, total_multiple=16, least_total=least))
    assert len(packed.tokens) == tokens
    assert torch.equal(packed.to_rows(packed.tokens, about_next=False), BATCH.tokens[ROWS])


def test_context_parallel_ranks_have_equal_attention_work() -> None:
    """Rank r reads pieces r and 2 CP - 1 - r of a sequence, so under a causal mask all ranks attend equally much."""
    sequence = from_sequences([list(range(1, 25))], [[]])
    packing = rule(24, sequence_multiple=6, total_multiple=6)
    rank_tokens = [pack(sequence, [0], packing, rank, 3).tokens.tolist() for rank in range(3)]
    assert rank_tokens[0] == [1, 2, 3, 4, 21, 22, 23, 24]
    assert len({sum(tokens) for tokens in rank_tokens}) == 1


def test_gradients_of_rows_reach_their_tokens_and_no_padding() -> None:
    packed = pack(BATCH, ROWS, rule(100, total_multiple=16))
    column = torch.zeros(16, requires_grad=True)
    packed.to_rows(column, about_next=False).sum().backward()
    assert column.grad is not None and column.grad.tolist() == [1.0] * 11 + [0.0] * 5


def test_every_row_is_dealt_once_within_the_budget_and_the_ranks_cost_the_same() -> None:
    """Lengths are log-normal with a tail at the budget. The number of micro-batches is minimal up to one per rank, and
    equal on all ranks. The costs of the ranks, attention included, differ by less than 2%."""
    lengths = [min(16384, int(random.Random(n).lognormvariate(7.6, 0.9)) + 1) for n in range(512)]
    packing = rule(16384, total_multiple=64, attention_cost=2e-5)
    dealt = packing.deal(lengths, 4)
    assert sorted(row for rank in dealt for rows in rank for row in rows) == list(range(512))
    assert {len(rank) for rank in dealt} == {len(dealt[0])}
    assert len(dealt[0]) * 4 <= -(-sum(lengths) // 16384) + 4
    assert all(sum(lengths[row] for row in rows) <= 16384 for rank in dealt for rows in rank)
    costs = [sum(packing.cost(lengths[row]) for rows in rank for row in rows) for rank in dealt]
    assert max(costs) < 1.02 * min(costs)
    for rank in dealt:
        by_micro_batch = [sum(packing.cost(lengths[row]) for row in rows) for rows in rank]
        assert all(earlier >= later for earlier, later in pairwise(by_micro_batch))


def test_fewer_rows_than_ranks_leave_micro_batches_of_padding() -> None:
    """Every rank takes part in every collective, and padding counts 0."""
    dealt = rule(8, total_multiple=4).deal([3], 2)
    assert sorted(dealt) == [[[]], [[0]]]
    empty = pack(BATCH, [], rule(8, total_multiple=4))
    assert empty.tokens.tolist() == [0, 0, 0, 0] and empty.boundaries.tolist() == [0, 4]
    assert empty.to_rows(torch.ones(4), about_next=True).numel() == 0


def test_the_interleaved_schedule_gets_a_multiple_of_its_stages() -> None:
    """Three micro-batches a rank would do. Four are dealt, and the rows are spread over all of them. A single row
    leaves three of padding. Protects from a schedule that refuses the number in the middle of a run."""
    lengths = [5] * 12
    dealt = rule(10, count_multiple=4).deal(lengths, 2)
    assert [[len(rows) for rows in rank] for rank in dealt] == [[2, 2, 1, 1], [2, 2, 1, 1]]
    assert sorted(row for rank in dealt for rows in rank for row in rows) == list(range(12))
    assert rule(10, count_multiple=4).deal([3], 1) == [[[0], [], [], []]]


def test_a_sequence_over_the_budget_is_packed_alone() -> None:
    (micro_batches,) = rule(10).deal([2, 12, 4, 4], 1)
    assert sorted(map(sorted, micro_batches)) == [[0, 2], [1], [3]]
    (single_rows,) = rule(1).deal([2, 12, 4, 4], 1)
    assert sorted(single_rows) == [[0], [1], [2], [3]]
