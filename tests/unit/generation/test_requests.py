"""What replicas exchange: each completion once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from tempo_megatron.generation.requests import Completion, gather_completions


def completion(number: int) -> Completion:
    ids = tuple(range(number, 2 * number + 1))
    return Completion(ids, (-0.5,) * len(ids), "stop", np.full((len(ids), 2, 1), number, dtype=np.uint8))


def test_the_ranks_of_a_replica_send_each_completion_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas of two ranks, one with an odd number of completions. Protects the host's memory: every rank holds a
    buffer of the largest part for each rank. A replica's figures count once."""
    replicas = [{5: completion(5), 0: completion(0), 2: completion(2)}, {1: completion(1), 3: completion(3)}]
    sent: dict[int, Any] = {}
    rank = 0

    def exchange(parts: list[Any], part: Any) -> None:
        sent[rank] = part
        parts[:] = [sent.get(number, part) for number in range(4)]

    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "all_gather_object", exchange)
    for rank in range(4):
        gathered, figures = gather_completions(replicas[rank // 2], {"tokens": rank // 2}, 2)
    assert sorted(number for part in sent.values() for number in part[0]) == [0, 1, 2, 3, 5]
    assert [len(sent[number][0]) for number in range(4)] == [2, 1, 1, 1]
    assert gathered == replicas[0] | replicas[1]
    for number, each in gathered.items():
        assert each.routes is not None and (each.routes == number).all() and len(each.routes) == number + 1
    assert figures == [{"tokens": 0}, {"tokens": 1}]
