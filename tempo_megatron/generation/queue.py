"""One queue of requests that all replicas draw from, so that none idles while another has a tail."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.distributed as dist

CounterDraw = Callable[[int], int]
"""moves a counter by so many and returns where it stood"""

_LOOK_AHEAD = 8
"""claims beyond a replica's slots are at most the slots divided by this"""

_calls = itertools.count()
"""names the counters: every rank makes the same generate calls"""


class RequestQueue:
    """The numbers 0 to total - 1 in order, each claimed by one replica.

    A replica claims what it can run at once, and no more than its share of the whole, be it the first to begin. When a
    claim has all been started it claims again: the slots that are free, and a look-ahead, so that not every step asks.
    Towards the end the look-ahead shrinks with what is left, to nothing: the last requests go to whoever has a slot.

    `claim` depends on its arguments and on `draw` alone: tensor ranks whose engines run in step make the same claims.
    """

    def __init__(self, total: int, replicas: int, slots: int, draw: CounterDraw) -> None:
        self._total = total
        self._replicas = replicas
        self._slots = min(slots, -(-total // replicas))
        self._draw = draw
        self._next = 0
        """where the counter stood when last seen; others may have moved it since"""

    def claim(self, running: int, waiting: int) -> range:
        """The next requests for an engine that runs and keeps waiting so many; empty when it should have no more."""
        left, free = self._total - self._next, self._slots - running
        # What fills every replica's slots the first time is nobody's to spare: some may begin later than others.
        taken = max(self._next, self._replicas * self._slots)
        spare = max(0, self._total - taken - self._replicas * free)
        count = free + min(self._slots // _LOOK_AHEAD, spare // (2 * self._replicas))
        if waiting or left <= 0 or count <= 0:
            return range(0)
        start = self._draw(count)
        self._next = start + count
        return range(min(start, self._total), min(self._next, self._total))


def local_counter() -> CounterDraw:
    """A counter of this process: of a single replica, whose tensor ranks all count alike."""
    counted = 0

    def draw(count: int) -> int:
        nonlocal counted
        counted += count
        return counted - count

    return draw


def shared_counter(tensor_group: dist.ProcessGroup) -> CounterDraw:
    """A counter that all replicas share, kept by the default process group's store; every rank makes one at once.

    The first rank of a replica draws and tells the others, over `tensor_group`, a group of CPU tensors.
    """
    key, store = f"tempo/requests/{next(_calls)}", dist.distributed_c10d._get_default_store()
    first = dist.get_global_rank(tensor_group, 0)

    def draw(count: int) -> int:
        start = store.add(key, count) - count if dist.get_rank() == first else 0
        if dist.get_world_size(tensor_group) > 1:
            told = torch.tensor([start])
            dist.broadcast(told, first, group=tensor_group)
            start = int(told)
        return start

    return draw
