"""Ranks, and work that is shared between ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist


def rank_and_ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks: (0, 1) outside a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def map_over_ranks[Result](owners: Sequence[int], work: Callable[[list[int]], Sequence[Result]]) -> list[Result]:
    """Return one result per index of `owners`, equal on all ranks. Collective.

    Rank `owners[i]` modulo the number of ranks computes result i. `work` gets the indices of this rank and returns
    their results in the same order.
    """
    rank, ranks = rank_and_ranks()
    own_indices = [index for index, owner in enumerate(owners) if owner % ranks == rank]
    results = dict(zip(own_indices, work(own_indices), strict=True))
    if ranks > 1:
        parts: list[dict[int, Result]] = [{}] * ranks
        dist.all_gather_object(parts, results)
        results = {index: result for part in parts for index, result in part.items()}
    return [results[index] for index in range(len(owners))]


def broadcast_from_first[Result](result: Result) -> Result:
    """Return the first rank's `result` on all ranks. Collective."""
    if rank_and_ranks()[1] == 1:
        return result
    box = [result]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait until all ranks have called this. Collective."""
    if rank_and_ranks()[1] > 1:
        dist.barrier()
