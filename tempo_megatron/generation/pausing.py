"""Decides when the requests of unfinished groups pause, and reads what the engine has sampled for them.

Replicas count in common how many groups are whole. The count only grows, so that every replica sees that it is enough,
each a few steps after it is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from tempo_megatron.generation.requests import PAUSED, Completion, Request
from tempo_megatron.generation.stopping import Broadcast

Tally = Callable[[str, int], int]
"""Adds a number to the count of that name and returns the sum."""

NOT_STARTED = Completion((), (), PAUSED)
"""The completion of a request that pauses before it has started."""
_SHARED_STEPS = 8
"""The engine steps between two looks at counts that replicas share."""
_WHOLE, _DUE = "whole", "due"
"""The counts of whole groups, and of those among them that must finish."""
_calls = itertools.count()
"""Numbers the shared tallies. All ranks make the same calls of `generate`, so their numbers agree."""
_used_keys: set[str] = set()
"""The keys of the last shared tally that this rank has counted in."""


class PausePoll:
    """Finds the moment of a call of `generate` at which the unfinished requests that have a group pause.

    It has come when `enough_groups` groups are whole, and among them all groups that must finish. A group is whole when
    all its requests have ended. A single replica looks before each engine step, so that the moment depends on the
    number of steps alone. Several replicas look every few steps.
    """

    def __init__(
        self, requests: Sequence[Request], enough_groups: int, replicas: int, tally: Tally, broadcast: Broadcast
    ) -> None:
        self._groups = [request.group for request in requests]
        self._sizes = Counter(self._groups)
        self._due = {request.group for request in requests if request.must_finish}
        self._enough_groups = enough_groups
        self._tally, self._broadcast = tally, broadcast
        self._steps = self._steps_left = 1 if replicas == 1 else _SHARED_STEPS
        self.has_come = False
        """Whether the moment has come. From then on no request that has a group starts."""

    def count(self, number: int) -> None:
        """Counts a request of this replica that has ended."""
        group = self._groups[number]
        if group is not None and self._tally(str(group), 1) == self._sizes[group]:
            self._tally(_WHOLE, 1)
            self._tally(_DUE, int(group in self._due))

    def comes_now(self) -> bool:
        """Returns true once, when requests pause. Every rank of a replica calls it before every step."""
        self._steps_left -= 1
        if self.has_come or self._steps_left > 0:
            return False
        self._steps_left = self._steps
        is_enough = self._tally(_WHOLE, 0) >= self._enough_groups and self._tally(_DUE, 0) == len(self._due)
        (first_ranks_view,) = self._broadcast([int(is_enough)])
        self.has_come = bool(first_ranks_view)
        return self.has_come

    def may_pause(self, number: int) -> bool:
        """Returns whether this request has a group."""
        return self._groups[number] is not None


def pause_poll(
    requests: Sequence[Request], enough_groups: int | None, replicas: int, tensor_rank: int, broadcast: Broadcast
) -> PausePoll | None:
    """Returns the poll of a call of `generate`; None where no request may pause. All ranks call it."""
    if enough_groups is None:
        return None
    if replicas == 1:  # its tensor-parallel ranks count alike, and need not ask one another in every step
        return PausePoll(requests, enough_groups, replicas, local_tally(), lambda numbers: numbers)
    return PausePoll(requests, enough_groups, replicas, shared_tally(tensor_rank == 0), broadcast)


def local_tally() -> Tally:
    """Returns counts of this process, for a single replica."""
    counts: Counter[str] = Counter()

    def add(name: str, number: int) -> int:
        counts[name] += number
        return counts[name]

    return add


def shared_tally(is_first_tensor_rank: bool) -> Tally:
    """Returns counts that all replicas share, in the store of the default process group. All ranks call it.

    Only the first rank of a replica counts. For the others every sum is 0. The counts of the last call are deleted: no
    rank reads them any more, because all ranks have exchanged their completions since.
    """
    prefix, store = f"tempo/groups/{next(_calls)}", dist.distributed_c10d._get_default_store()
    while _used_keys:
        store.delete_key(_used_keys.pop())

    def add(name: str, number: int) -> int:
        if not is_first_tensor_rank:
            return 0
        key = f"{prefix}/{name}"
        _used_keys.add(key)
        return store.add(key, number)

    return add


def pause_requests(engine: Any, unfinished: Mapping[int, Any]) -> dict[int, Completion]:
    """Aborts requests of vLLM's `engine`; returns what it has sampled for them so far, by request number.

    A token that is still on its way from the device is left out. It has not been read, so leaving it out selects
    nothing.
    """
    states = {number: engine.output_processor.request_states[each.request_id] for number, each in unfinished.items()}
    completions = {
        number: Completion(
            tuple(state.detokenizer.output_token_ids), tuple(state.logprobs_processor.logprobs.logprobs), PAUSED
        )
        for number, state in states.items()
    }
    engine.abort_request([str(number) for number in unfinished])
    return completions
