"""When unfinished requests pause, and what they have then; with simulated engines and counters."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from tempo_megatron.generation.pausing import PausePoll, local_tally, pause_poll, pause_requests, shared_tally
from tempo_megatron.generation.queue import RequestQueue, local_counter
from tempo_megatron.generation.requests import PAUSED, Completion, Request


def requests_of(groups: list[int | None]) -> list[Request]:
    return [Request((1,), number, 9, 1.0, 1.0, group=group) for number, group in enumerate(groups)]


def same(numbers: list[int]) -> list[int]:
    return numbers


def test_the_moment_comes_once_when_enough_groups_are_whole() -> None:
    """A group counts once all its requests have ended; a request without a group counts for none."""
    poll = PausePoll(requests_of([None, 0, 0, 1, 1, 2, 2]), 2, 1, local_tally(), same)
    for number, comes in [(1, False), (3, False), (5, False), (0, False), (2, False), (4, True), (6, False)]:
        poll.count(number)
        assert poll.comes_now() is comes, number
    assert poll.has_come and [poll.may_pause(number) for number in range(3)] == [False, True, True]


def test_groups_that_must_finish_are_waited_for() -> None:
    """They count among those that are enough, and the others go on while they take longer."""
    requests = requests_of([0, 1, 2, 3])
    requests[1] = replace(requests[1], must_finish=True)
    poll = PausePoll(requests, 2, 1, local_tally(), same)
    for number, comes in [(0, False), (2, False), (1, True)]:
        poll.count(number)
        assert poll.comes_now() is comes


def test_with_no_group_to_wait_for_the_moment_comes_at_once() -> None:
    """As when the groups that must finish are as many as an M-step learns from."""
    assert PausePoll(requests_of([None, 0]), 0, 1, local_tally(), same).comes_now()


def test_nothing_pauses_unless_a_number_of_groups_is_named() -> None:
    assert pause_poll(requests_of([0, 1]), None, 1, 0, same) is None
    assert pause_poll(requests_of([0, 1]), 1, 1, 0, same) is not None


def simulate(steps: list[int], groups: list[int | None], enough: int, replicas: int, delay: int) -> list[set[int]]:
    """Runs replicas that start `delay` rounds after one another; returns the requests that ended in each of them."""
    counter, tally, requests = local_counter(), local_tally(), requests_of(groups)
    queues = [RequestQueue(len(steps), replicas, 6, counter) for _ in range(replicas)]
    polls = [PausePoll(requests, enough, replicas, tally, same) for _ in range(replicas)]
    running: list[dict[int, int]] = [{} for _ in range(replicas)]
    ended: list[set[int]] = [set() for _ in range(replicas)]
    active = set(range(replicas))
    for time in range(10_000):
        for replica in sorted(active):
            if time < replica * delay:
                continue
            poll = polls[replica]
            if poll.comes_now():
                running[replica] = {n: left for n, left in running[replica].items() if not poll.may_pause(n)}
            claimed = queues[replica].claim(len(running[replica]), 0)
            started = [number for number in claimed if not (poll.has_come and poll.may_pause(number))]
            running[replica] |= {number: steps[number] for number in started}
            if not running[replica] and not claimed:
                active.remove(replica)
            for number in list(running[replica]):
                running[replica][number] -= 1
                if not running[replica][number]:
                    del running[replica][number]
                    ended[replica].add(number)
                    poll.count(number)
        if not active:
            return ended
    raise AssertionError("a replica does not end")


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("delay", [0, 5])
def test_enough_groups_become_whole_whichever_replicas_have_their_requests(replicas: int, delay: int) -> None:
    """One request of three of the groups would take thousands of steps. Every request without a group ends, those that
    start after the pause included."""
    random.seed(replicas)
    groups: list[int | None] = [*[None] * 5, *(number // 4 for number in range(48)), *[None] * 9]
    steps = [random.randint(5, 30) for _ in groups]
    for number in (20, 40, 52):
        steps[number] = 5000
    ended = set[int]().union(*simulate(steps, groups, 8, replicas, delay))
    assert {number for number, group in enumerate(groups) if group is None} <= ended
    whole = [group for group in range(12) if {5 + 4 * group + sample for sample in range(4)} <= ended]
    assert 8 <= len(whole) <= 9
    assert not {20, 40, 52} & ended


def test_tensor_parallel_ranks_end_at_the_first_ranks_step() -> None:
    """The second rank counts nothing in common, and takes the first one's view."""
    sent: list[list[int]] = []

    def send(numbers: list[int]) -> list[int]:
        sent.append(numbers)
        return numbers

    def rank(tally: Callable[[str, int], int], broadcast: Callable[[list[int]], list[int]]) -> PausePoll:
        return PausePoll(requests_of([0, 1]), 1, 2, tally, broadcast)

    first, second = rank(local_tally(), send), rank(lambda name, number: 0, lambda numbers: sent[-1])
    views = []
    for step in range(40):
        if step == 11:
            for poll in (first, second):
                poll.count(0)
        views.append((first.comes_now(), second.comes_now()))
    assert all(one == other for one, other in views)
    assert [step for step, (one, _) in enumerate(views) if one] == [15]  # the first look after step 11


def test_shared_counts_of_the_last_call_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of ten thousand iterations would otherwise leave millions of keys in the store of the first rank."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    first = shared_tally(is_first_tensor_rank=True)
    assert [first("0", 1), first("0", 1), first("whole", 1)] == [1, 2, 1]
    keys = store.num_keys()
    second = shared_tally(is_first_tensor_rank=True)
    assert store.num_keys() == keys - 2
    assert second("0", 1) == 1 and shared_tally(is_first_tensor_rank=False)("0", 1) == 0


def test_what_an_unfinished_request_has_is_read_from_the_engine() -> None:
    """Tokens with the log-probs of their time; nothing of requests that have not started."""

    def state(ids: list[int], log_probs: list[float]) -> SimpleNamespace:
        logprobs = SimpleNamespace(logprobs=SimpleNamespace(logprobs=log_probs))
        return SimpleNamespace(detokenizer=SimpleNamespace(output_token_ids=ids), logprobs_processor=logprobs)

    states = {"a": state([4, 5], [-1.0, -2.0]), "b": state([], [])}
    aborted: list[str] = []
    engine = SimpleNamespace(output_processor=SimpleNamespace(request_states=states), abort_request=aborted.extend)
    unfinished = {7: SimpleNamespace(request_id="a"), 3: SimpleNamespace(request_id="b")}
    assert pause_requests(engine, unfinished) == {
        7: Completion((4, 5), (-1.0, -2.0), PAUSED),
        3: Completion((), (), PAUSED),
    }
    assert aborted == ["7", "3"]
