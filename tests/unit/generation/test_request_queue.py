"""The queue from which replicas claim requests, with simulated engines and counter."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from statistics import mean

import pytest

from tempo_megatron.generation.queue import CounterDraw, RequestQueue, local_counter, longest_first


@dataclass
class Engine:
    """Simulates vLLM: `slots` requests run and the others wait. Request n needs `steps[n]` steps."""

    steps: list[int]
    queue: RequestQueue
    slots: int
    running: dict[int, int] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    claimed: list[int] = field(default_factory=list)
    claims: int = 0

    def step(self) -> bool:
        """Claims requests, starts waiting ones, and makes one step; returns whether any request was running."""
        claim = self.queue.claim(len(self.running), len(self.waiting))
        self.claims += len(claim) > 0
        self.claimed += claim
        self.waiting += claim
        while self.waiting and len(self.running) < self.slots:
            number = self.waiting.pop(0)
            self.running[number] = self.steps[number]
        busy = bool(self.running)
        self.running = {number: steps_left - 1 for number, steps_left in self.running.items() if steps_left > 1}
        return busy


def run(steps: list[int], replicas: int, slots: int, delay: int = 0) -> tuple[list[Engine], int]:
    """Runs all requests; returns the engines and the number of steps.

    Each engine starts `delay` steps after the previous one.
    """
    counter = local_counter()
    engines = [Engine(steps, RequestQueue(len(steps), replicas, slots, counter), slots) for _ in range(replicas)]
    steps_taken = 0
    while any([engine.step() for engine in engines[: 1 + steps_taken // delay if delay else replicas]]):
        steps_taken += 1
    return engines, steps_taken


@pytest.mark.parametrize(("total", "replicas", "slots"), [(0, 2, 4), (1, 3, 4), (7, 1, 3), (50, 4, 64), (999, 3, 16)])
def test_every_request_is_claimed_once_and_in_order(total: int, replicas: int, slots: int) -> None:
    """No request is lost if a claim goes past the end."""
    random.seed(total)
    engines, _ = run([random.randint(1, 30) for _ in range(total)], replicas, slots)
    assert sorted(number for engine in engines for number in engine.claimed) == list(range(total))
    assert all(engine.claimed == sorted(engine.claimed) for engine in engines)


def test_no_replica_idles_while_another_has_requests_to_start() -> None:
    """All long responses are in one half of the requests. A fixed assignment to replicas would take far longer."""
    steps = [40 if number % 2 else 1 for number in range(400)]
    engines, steps_taken = run(steps, 2, 10)
    assert steps_taken <= sum(steps) / 20 + 40
    assert max(len(engine.claimed) for engine in engines) < 250


def test_few_requests_are_shared_out_evenly_and_claims_are_rare() -> None:
    """No replica fills its slots with requests that others could run. With many requests, few steps make a claim."""
    engines, _ = run([5] * 40, 4, 64)
    assert [len(engine.claimed) for engine in engines] == [10] * 4
    random.seed(0)
    engines, steps_taken = run([random.randint(50, 150) for _ in range(4000)], 2, 200)
    assert all(engine.claims < steps_taken / 5 for engine in engines)


@pytest.mark.parametrize(("total", "replicas", "slots"), [(256, 2, 256), (1024, 4, 256), (40, 4, 64)])
def test_the_first_replica_leaves_the_others_their_share(total: int, replicas: int, slots: int) -> None:
    """With at most as many requests as slots, none waits at one replica while another has a free slot."""
    engines, steps_taken = run([50] * total, replicas, slots, delay=2)
    assert [len(engine.claimed) for engine in engines] == [total // replicas] * replicas
    assert steps_taken == 50 + 2 * (replicas - 1)


def test_nothing_is_claimed_while_requests_wait() -> None:
    """Sequences that were evicted for lack of KV cache come first."""
    queue = RequestQueue(100, 2, 8, local_counter())
    assert list(queue.claim(0, 0)) == list(range(9))
    assert not queue.claim(3, 5)
    assert list(queue.claim(8, 0)) == [9]


def test_tensor_parallel_ranks_with_the_first_ranks_draws_make_the_same_claims() -> None:
    """One replica of two has two ranks. Both make the same calls, and the first one advances the counter."""
    counter = local_counter()
    draws: list[int] = []

    def draw(count: int) -> int:
        draws.append(counter(count))
        return draws[-1]

    receive: CounterDraw = lambda count: draws[-1]  # noqa: E731
    ranks = [RequestQueue(60, 2, 8, function) for function in (draw, receive)]
    other = RequestQueue(60, 2, 8, counter)
    for running in (0, 8, 3, 8, 7, 0, 0, 0, 0):
        other.claim(5, 0)
        first_claim, second_claim = (queue.claim(running, 0) for queue in ranks)
        assert first_claim == second_claim


def makespan(lengths: list[int], order: list[int], replicas: int, slots: int) -> float:
    """Returns the time at which the last response ends. A step takes twice as long with all slots as with none."""
    steps, counter = [lengths[number] for number in order], local_counter()
    engines = [Engine(steps, RequestQueue(len(steps), replicas, slots, counter), slots) for _ in range(replicas)]
    next_steps, end = [(0.0, replica) for replica in range(replicas)], 0.0
    while next_steps:
        start, replica = heapq.heappop(next_steps)
        engine = engines[replica]
        if engine.step():
            heapq.heappush(next_steps, (start + 1 + len(engine.running) / slots, replica))
        end = max(end, start)
    return end


def drawn_lengths(source: random.Random, questions: int, samples: int) -> tuple[list[int], list[float | None]]:
    """Returns lognormal lengths of at most 240 tokens by question, and each question's mean in an earlier draw."""
    lengths: list[int] = []
    expected_tokens: list[float | None] = []
    for _ in range(questions):
        center = source.gauss(math.log(45), 0.6)
        now, before = ([min(240, 1 + int(source.lognormvariate(center, 0.5))) for _ in range(samples)] for _ in "ab")
        lengths += now
        expected_tokens += [mean(before)] * samples
    return lengths, expected_tokens


@pytest.mark.parametrize(("total", "replicas", "slots"), [(1, 3, 4), (7, 3, 4), (9, 1, 3), (60, 4, 8), (999, 3, 16)])
def test_no_replica_gets_more_than_its_share_of_the_longest(total: int, replicas: int, slots: int) -> None:
    """The k longest are shared out evenly, for every k while all first claims have room. The rest are in order."""
    expected_tokens: list[float | None] = [float(number * 7919 % 1009) for number in range(total)]
    counter = local_counter()
    queues = [RequestQueue(total, replicas, slots, counter) for _ in range(replicas)]
    order = longest_first(expected_tokens, replicas, queues[0].first_claim)
    assert sorted(order) == list(range(total))
    claims = [[order[position] for position in queue.claim(0, 0)] for queue in queues]
    longest = sorted(range(total), key=lambda number: -(expected_tokens[number] or 0))
    claimed = sum(map(len, claims))
    for count in range(1, replicas * min(map(len, claims)) + 1):
        shares = [len(set(claim).intersection(longest[:count])) for claim in claims]
        assert max(shares) == math.ceil(count / replicas)
    assert order[claimed:] == longest[claimed:]


def test_requests_without_history_come_first_and_keep_their_order() -> None:
    """They may be long. Without any history the requests are claimed as they come."""
    assert longest_first([None] * 5, 2, 2) == [0, 1, 2, 3, 4]
    assert longest_first([3.0, None, 5.0, None, 4.0], 1, 5) == [1, 3, 2, 4, 0]
    assert longest_first([3.0, None, 5.0, None, 4.0], 2, 2) == [1, 2, 3, 4, 0]
    assert longest_first([], 2, 0) == []


def test_with_history_the_last_response_ends_earlier() -> None:
    """In the mean over draws, dealt requests end before requests in order, and before requests that are only sorted."""
    source = random.Random(5)
    ratios, ratios_of_sorted = [], []
    for _ in range(16):
        lengths, expected_tokens = drawn_lengths(source, questions=12, samples=8)
        first_claim = RequestQueue(96, 4, 12, local_counter()).first_claim
        in_order = makespan(lengths, list(range(96)), 4, 12)
        dealt = makespan(lengths, longest_first(expected_tokens, 4, first_claim), 4, 12)
        only_sorted = makespan(lengths, longest_first(expected_tokens, 1, 96), 4, 12)
        ratios.append(dealt / in_order)
        ratios_of_sorted.append(dealt / only_sorted)
    assert mean(ratios) < 1 and mean(ratios_of_sorted) < 1
