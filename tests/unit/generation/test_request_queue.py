"""The queue that replicas draw requests from, with engines and a store that are made up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from tempo_megatron.generation.queue import CounterDraw, RequestQueue, local_counter


@dataclass
class Engine:
    """Takes requests as vLLM does: `slots` run, the others wait; request n needs `steps[n]` steps."""

    steps: list[int]
    queue: RequestQueue
    slots: int
    running: dict[int, int] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    claimed: list[int] = field(default_factory=list)
    claims: int = 0

    def step(self) -> bool:
        """Claim, start what waits, and go one step on; whether there was anything to do."""
        mine = self.queue.claim(len(self.running), len(self.waiting))
        self.claims += len(mine) > 0
        self.claimed += mine
        self.waiting += mine
        while self.waiting and len(self.running) < self.slots:
            number = self.waiting.pop(0)
            self.running[number] = self.steps[number]
        busy = bool(self.running)
        self.running = {number: left - 1 for number, left in self.running.items() if left > 1}
        return busy


def run(steps: list[int], replicas: int, slots: int, apart: int = 0) -> tuple[list[Engine], int]:
    """The engines when all is done, and the steps that it took; each begins `apart` steps after the one before."""
    counter = local_counter()
    engines = [Engine(steps, RequestQueue(len(steps), replicas, slots, counter), slots) for _ in range(replicas)]
    taken = 0
    while any([engine.step() for engine in engines[: 1 + taken // apart if apart else replicas]]):
        taken += 1
    return engines, taken


@pytest.mark.parametrize(("total", "replicas", "slots"), [(0, 2, 4), (1, 3, 4), (7, 1, 3), (50, 4, 64), (999, 3, 16)])
def test_every_request_is_claimed_once_and_in_order(total: int, replicas: int, slots: int) -> None:
    """Whatever the numbers: none is lost where a claim goes past the end."""
    random.seed(total)
    engines, _ = run([random.randint(1, 30) for _ in range(total)], replicas, slots)
    assert sorted(number for engine in engines for number in engine.claimed) == list(range(total))
    assert all(engine.claimed == sorted(engine.claimed) for engine in engines)


def test_no_replica_idles_while_another_has_requests_to_start() -> None:
    """Long responses all in one half, as when dealt out by replica: drawn from the queue they take what they must."""
    steps = [40 if number % 2 else 1 for number in range(400)]
    engines, taken = run(steps, 2, 10)
    assert taken <= sum(steps) / 20 + 40
    assert max(len(engine.claimed) for engine in engines) < 250


def test_few_requests_are_shared_out_evenly_and_claims_are_rare() -> None:
    """No replica fills its slots with what others could run; with many requests a claim is not made at every step."""
    engines, _ = run([5] * 40, 4, 64)
    assert [len(engine.claimed) for engine in engines] == [10] * 4
    random.seed(0)
    engines, taken = run([random.randint(50, 150) for _ in range(4000)], 2, 200)
    assert all(engine.claims < taken / 5 for engine in engines)


@pytest.mark.parametrize(("total", "replicas", "slots"), [(256, 2, 256), (1024, 4, 256), (40, 4, 64)])
def test_who_begins_first_leaves_the_others_their_share(total: int, replicas: int, slots: int) -> None:
    """A wave that fills every slot at most: none waits behind one replica while another has slots for it."""
    engines, taken = run([50] * total, replicas, slots, apart=2)
    assert [len(engine.claimed) for engine in engines] == [total // replicas] * replicas
    assert taken == 50 + 2 * (replicas - 1)


def test_nothing_is_claimed_while_requests_wait() -> None:
    """Sequences that were put back for want of KV cache come first."""
    queue = RequestQueue(100, 2, 8, local_counter())
    assert list(queue.claim(0, 0)) == list(range(9))
    assert not queue.claim(3, 5)
    assert list(queue.claim(8, 0)) == [9]


def test_tensor_ranks_that_are_told_the_first_ones_draws_make_the_same_claims() -> None:
    """Two replicas of two ranks: every rank of one asks alike, the first draws."""
    counter = local_counter()
    told: list[int] = []

    def first(count: int) -> int:
        told.append(counter(count))
        return told[-1]

    drawn: CounterDraw = lambda count: told[-1]  # noqa: E731
    ranks = [RequestQueue(60, 2, 8, draw) for draw in (first, drawn)]
    other = RequestQueue(60, 2, 8, counter)
    for running in (0, 8, 3, 8, 7, 0, 0, 0, 0):
        other.claim(5, 0)
        mine, theirs = (queue.claim(running, 0) for queue in ranks)
        assert mine == theirs
