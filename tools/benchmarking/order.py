"""Section order: a rollout in the requests' own order, and with the longest expected responses first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from benchmarking import clock
from benchmarking.generation import RolloutWorkload, random_prompts
from benchmarking.planned import planned_run
from benchmarking.report import Figures
from benchmarking.setup import Setup
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.requests import Request
from tempo_megatron.planning.decoding import Decoding
from tempo_megatron.planning.workload import Workload


def measure_order(setup: Setup, generator: Generator, workload: RolloutWorkload) -> Figures:
    """Seconds of `Generator.generate` for the same requests in three orders, with an empty prefix cache each.

    "longest first" expects of each question the mean length of an earlier iteration, as a run does. "lengths known"
    expects every length, which no run can. Each order is first in some round. Collective.
    """
    requests = question_requests(workload, setup.settings.vocab_size)
    orders = {
        "in order": requests,
        "longest first": _with_history(workload, requests),
        "lengths known": [replace(request, expected_tokens=float(request.max_tokens)) for request in requests],
    }
    generator.generate(requests[: 2 * generator.replicas])
    generator.take_figures()
    names = list(orders)
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    idle_seconds: dict[str, list[float]] = {name: [] for name in orders}
    for number in range(workload.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            generator._llm.reset_prefix_cache()
            seconds[name].append(clock.timed(lambda ordered=orders[name]: generator.generate(ordered)))
            idle_seconds[name].append(generator.take_figures().get("seconds/replica_idle", 0.0))
    medians = {name: clock.median(rounds) for name, rounds in seconds.items()}
    lengths = [request.max_tokens for request in requests]
    return {
        "requests": len(requests),
        "replicas": generator.replicas,
        "tokens": sum(lengths),
        "longest response": max(lengths),
        "seconds": medians,
        "seconds that `tempo plan` predicts": _planned_seconds(setup, workload, lengths),
        "seconds of each": {name: [round(value, 3) for value in rounds] for name, rounds in seconds.items()},
        "seconds that a replica waits for the last one": {
            name: clock.median(rounds) for name, rounds in idle_seconds.items()
        },
        **{f"{name} / in order": medians[name] / medians["in order"] for name in names[1:]},
    }


def question_requests(workload: RolloutWorkload, vocabulary: int) -> list[Request]:
    """Requests whose lengths depend on their question and their seed."""
    prompts = random_prompts(workload, vocabulary)
    return [
        Request(tuple(prompt), seed, workload.lengths.draw_of_question(question, seed), 1.0, 1.0)
        for question, prompt in enumerate(prompts)
        for seed in _seeds("request", question, workload.samples)
    ]


def _planned_seconds(setup: Setup, workload: RolloutWorkload, lengths: Sequence[int]) -> float | None:
    """What `tempo plan` predicts for responses of these lengths, in no order; None on CPUs."""
    run = planned_run(setup)
    if run is None:
        return None
    return Decoding(run, Workload(tuple(lengths), prompt=workload.prompt_tokens)).time(len(lengths)).seconds


def _with_history(workload: RolloutWorkload, requests: Sequence[Request]) -> list[Request]:
    """The requests with the expectations of a run whose questions were sampled once before."""
    expected_tokens = [
        mean(
            workload.lengths.draw_of_question(question, seed) for seed in _seeds("earlier", question, workload.samples)
        )
        for question in range(workload.prompts)
    ]
    return [
        replace(request, expected_tokens=expected_tokens[number // workload.samples])
        for number, request in enumerate(requests)
    ]


def _seeds(kind: str, question: int, samples: int) -> list[int]:
    return [derive_seed("benchmark", kind, question, sample) for sample in range(samples)]
