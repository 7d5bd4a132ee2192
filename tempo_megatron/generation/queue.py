"""One queue of requests for all replicas, so that no replica idles while another still has many requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

CounterDraw = Callable[[int], int]
"""Advances a counter by a number; returns its previous value."""

_LOOK_AHEAD = 8
"""A replica claims at most its slots divided by this beyond its free slots."""

_calls = itertools.count()
"""Numbers the counters. All ranks make the same calls of `generate`, so their numbers agree."""


def longest_first(expected_tokens: Sequence[float | None], replicas: int, first_claim: int) -> list[int]:
    """Returns the request numbers in the order of their positions in the queue, given each request's expected tokens.

    Requests without an expectation (None) come first, then those with the most tokens. Position p of the queue belongs
    to the first claim of replica p // `first_claim`, as far as there are replicas. The k-th request of the order is
    dealt to replica k mod `replicas`: with sorting alone, one replica would get all long responses. The rest follows in
    order. Without any expectation the requests keep their own order.
    """
    total = len(expected_tokens)
    order = list(range(total))
    if all(tokens is None for tokens in expected_tokens):
        return order
    order.sort(key=lambda number: (expected_tokens[number] is not None, -(expected_tokens[number] or 0.0)))
    dealt = min(total, replicas * first_claim)
    positions = sorted(range(dealt), key=lambda position: (position % first_claim, position // first_claim))
    first_numbers = dict(zip(positions, order, strict=False))
    return [first_numbers[position] for position in range(dealt)] + order[dealt:]


class RequestQueue:
    """The positions 0 to total - 1 of a queue in order, each claimed by one replica.

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
        self.first_claim = self._claim_size(self._slots)
        """The number of positions in a replica's first claim."""

    def claim(self, running: int, waiting: int) -> range:
        """Returns the next positions for an engine with these numbers of running and waiting requests; may be empty."""
        count = self._claim_size(self._slots - running)
        if waiting or self._next >= self._total or count <= 0:
            return range(0)
        start = self._draw(count)
        self._next = start + count
        return range(min(start, self._total), min(self._next, self._total))

    def _claim_size(self, free: int) -> int:
        """Returns how many positions an engine with `free` slots claims, if there are as many."""
        # The first requests fill the slots of every replica. They are reserved, because some replicas start later.
        reserved = max(self._next, self._replicas * self._slots)
        spare = max(0, self._total - reserved - self._replicas * free)
        return free + min(self._slots // _LOOK_AHEAD, spare // (2 * self._replicas))


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
