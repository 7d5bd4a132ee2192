"""Work that one rank does for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank and how many there are: (0, 1) outside a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def divided[Result](owners: Sequence[int], work: Callable[[list[int]], Sequence[Result]]) -> list[Result]:
    """A result for each item, equal on all ranks: `work` is given the items of this rank, item i being one of rank
    `owners[i]` modulo the ranks. Collective."""
    rank, ranks = rank_and_ranks()
    mine = [item for item, owner in enumerate(owners) if owner % ranks == rank]
    found = dict(zip(mine, work(mine), strict=True))
    if ranks > 1:
        parts: list[dict[int, Result]] = [{}] * ranks
        dist.all_gather_object(parts, found)
        found = {item: result for part in parts for item, result in part.items()}
    return [found[item] for item in range(len(owners))]


def from_first[Result](result: Result) -> Result:
    """The first rank's result, on all ranks. Collective."""
    if rank_and_ranks()[1] == 1:
        return result
    box = [result]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Until all ranks have come here."""
    if rank_and_ranks()[1] > 1:
        dist.barrier()
