"""One queue of requests for all replicas, so that no replica idles while another still has many requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.distributed as dist

CounterDraw = Callable[[int], int]
"""Advances a counter by a number; returns its previous value."""

_LOOK_AHEAD = 8
"""A replica claims at most its slots divided by this beyond its free slots."""

_calls = itertools.count()
"""Numbers the counters. All ranks make the same calls of `generate`, so their numbers agree."""


class RequestQueue:
    """The request numbers 0 to total - 1 in order, each claimed by one replica.

    A replica first claims as many requests as it can run at once, and at most its share of all requests. When all of a
    claim has started, it claims its free slots plus a look-ahead, so that it need not claim in every step. Towards the
    end the look-ahead shrinks to 0, and the last requests go to the replicas with a free slot.

    `claim` depends on its arguments and on `draw` alone, so tensor-parallel ranks with synchronous engines make the
    same claims.
    """

    def __init__(self, total: int, replicas: int, slots: int, draw: CounterDraw) -> None:
        self._total = total
        self._replicas = replicas
        self._slots = min(slots, -(-total // replicas))
        self._draw = draw
        self._next = 0
        """The last known value of the counter. Other replicas may have advanced it since."""

    def claim(self, running: int, waiting: int) -> range:
        """Returns the next requests for an engine with these numbers of running and waiting requests; may be empty."""
        unclaimed, free = self._total - self._next, self._slots - running
        # The first requests fill the slots of every replica. They are reserved, because some replicas start later.
        reserved = max(self._next, self._replicas * self._slots)
        spare = max(0, self._total - reserved - self._replicas * free)
        count = free + min(self._slots // _LOOK_AHEAD, spare // (2 * self._replicas))
        if waiting or unclaimed <= 0 or count <= 0:
            return range(0)
        start = self._draw(count)
        self._next = start + count
        return range(min(start, self._total), min(self._next, self._total))


def local_counter() -> CounterDraw:
    """Returns a counter of this process, for a single replica. Its tensor-parallel ranks all count alike."""
    counter = 0

    def draw(count: int) -> int:
        nonlocal counter
        counter += count
        return counter - count

    return draw


def shared_counter(tensor_group: dist.ProcessGroup) -> CounterDraw:
    """Returns a counter that all replicas share, in the store of the default process group. Collective.

    The first rank of a replica advances it and broadcasts the value over `tensor_group`, a group for CPU tensors.
    """
    key, store = f"tempo/requests/{next(_calls)}", dist.distributed_c10d._get_default_store()
    first = dist.get_global_rank(tensor_group, 0)

    def draw(count: int) -> int:
        start = store.add(key, count) - count if dist.get_rank() == first else 0
        if dist.get_world_size(tensor_group) > 1:
            value = torch.tensor([start])
            dist.broadcast(value, first, group=tensor_group)
            start = int(value)
        return start

    return draw
