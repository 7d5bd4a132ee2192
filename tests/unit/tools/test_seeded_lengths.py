"""Responses of the benchmark have the lengths that their seeds say, also if they pause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarking.lengths import Lengths
from benchmarking.run import SeededLengths

from tempo_megatron.generation.requests import PAUSED, Completion, Request

LENGTHS = Lengths.parse("uniform:4:1000")


class PausingEngine:
    """An engine that pauses each response after so many tokens as its place in the call, or lets all of them end."""

    def __init__(self) -> None:
        self.pauses = True

    def generate(self, requests: Sequence[Request], enough_groups: int | None) -> list[Completion]:
        completions = []
        for number, request in enumerate(requests):
            count = min(number, request.max_tokens - 1) if self.pauses else request.max_tokens
            tokens = tuple(request.seed % 1000 + place for place in range(count))
            completions.append(Completion(tokens, (0.0,) * count, PAUSED if self.pauses else "length"))
        return completions


def request(seed: int, prompt_ids: tuple[int, ...]) -> Request:
    return Request(prompt_ids, seed, 2000, 1.0, 1.0)


def test_a_paused_response_keeps_its_length() -> None:
    """Over two pauses, though every continuation has a new seed. Another response to the same prompt has its own."""
    engine = PausingEngine()
    generator = SeededLengths(engine, LENGTHS)
    requests = [request(seed, (seed % 2,)) for seed in range(6)]
    totals = [0] * len(requests)
    for attempt in range(3):
        engine.pauses = attempt < 2
        for number, completion in enumerate(generator.generate(requests, 1)):
            totals[number] += len(completion.response_ids)
            continued = requests[number].prompt_ids + completion.response_ids
            requests[number] = replace(requests[number], seed=100 * (attempt + 1) + number, prompt_ids=continued)
    assert totals == [LENGTHS.draw(seed) for seed in range(6)]


def test_responses_that_have_not_started_keep_the_lengths_of_the_call() -> None:
    """Requests of one prompt that have no token yet are alike, so that only the set of their lengths matters. Later
    requests of this prompt get lengths of their own."""
    engine = PausingEngine()
    generator = SeededLengths(engine, LENGTHS)
    for seed in range(3):  # the first request of a call has no token when it pauses
        generator.generate([request(seed, (7,))], 1)
        engine.pauses = False
        (completion,) = generator.generate([request(seed + 100, (7,))], 1)
        assert len(completion.response_ids) == LENGTHS.draw(seed) and completion.finish_reason == "stop"
        engine.pauses = True
    engine.pauses = False
    (completion,) = generator.generate([request(3, (7,))])
    assert len(completion.response_ids) == LENGTHS.draw(3)
