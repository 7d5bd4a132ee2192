"""Sections rollout and sync: the generator against plain vLLM, and the transfer of weights into it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarking import clock
from benchmarking.lengths import Lengths
from benchmarking.report import Figures
from benchmarking.setup import Setup, build
from tempo_megatron.conversion import decoder
from tempo_megatron.conversion.rows import assemble_tensors
from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.requests import Request
from tempo_megatron.megatron import weights


@dataclass(frozen=True)
class RolloutWorkload:
    """`samples` responses to each of `prompts` prompts, generated `rounds` times in each way."""

    prompts: int
    samples: int
    prompt_tokens: int
    lengths: Lengths
    rounds: int


def start(setup: Setup) -> Generator:
    """A generator that pulls its weights from a policy without an optimizer."""
    config, chunks = setup.config, build(setup, "policy")
    mappings = decoder.policy_mappings(setup.settings)
    return Generator(
        Path(config.model.hf_path),
        config.generation,
        tensor_parallel_size=config.generation.tensor_parallel_size or setup.topology.tensor_size,
        max_model_len=config.data.max_prompt_tokens + config.generation.max_response_tokens,
        dtype=next(chunks[0].parameters()).dtype,
        eos_token_ids=[],
        seed=config.seed,
        numerics=config.numerics,
        weights=weights.WeightExporter(chunks, mappings, setup.topology).export,
    )


def measure_rollout(setup: Setup, generator: Any, workload: RolloutWorkload) -> Figures:
    """Tokens/s/GPU of `Generator.generate`, and of `LLM.generate` on the same engine with the same requests.

    `LLM.generate` gets its share of the requests beforehand. It runs with and without a seed for each request; vLLM
    samples seeded requests one by one. Each way is first in some round, and starts with an empty prefix cache. Steps
    are those of the first rank's engine. Collective.
    """
    requests = _requests(workload, setup.settings.vocab_size)
    tokens = sum(request.max_tokens for request in requests)
    replica_requests = requests[generator.replica :: generator.replicas]
    generator.generate(requests[: 2 * generator.replicas])
    ways = {
        "ours": lambda: generator.generate(requests),
        "raw vLLM": lambda: _raw(generator, replica_requests, seeded=True),
        "raw vLLM, unseeded": lambda: _raw(generator, replica_requests, seeded=False),
    }
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[list[float]]] = {name: [] for name in ways}
    generator.take_figures()
    requests_per_replica = []
    for number in range(workload.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            generator._llm.reset_prefix_cache()
            with _watched_steps(generator._llm.llm_engine) as step_seconds:
                seconds[name].append(clock.timed(ways[name]))
            steps[name].append(step_seconds)
            if figures := generator.take_figures():
                requests_per_replica.append([int(figures[f"replica_requests_{which}"]) for which in ("least", "most")])
    speed = {name: tokens / clock.median(rounds) / setup.topology.world_size for name, rounds in seconds.items()}
    return {
        "requests": len(requests),
        "tokens": tokens,
        "tokens/s/GPU": speed,
        "seconds of each": {name: [round(value, 3) for value in rounds] for name, rounds in seconds.items()},
        "requests that a replica drew, least and most, of each": requests_per_replica,
        "engine steps of each": {
            name: [len(step_seconds) for step_seconds in rounds] for name, rounds in steps.items()
        },
        "seconds in them": {
            name: [round(sum(step_seconds), 3) for step_seconds in rounds] for name, rounds in steps.items()
        },
        "seconds of the middle step": {name: _medians(rounds) for name, rounds in steps.items()},
        "seconds of the longest step": {
            name: [max(step_seconds) for step_seconds in rounds] for name, rounds in steps.items()
        },
        "ours / raw": speed["ours"] / speed["raw vLLM"],
        "ours / raw unseeded": speed["ours"] / speed["raw vLLM, unseeded"],
    }


@contextlib.contextmanager
def _watched_steps(engine: Any) -> Iterator[list[float]]:
    """Yields the seconds of each step of this rank's engine, measured on the host without waiting for the device."""
    step_seconds: list[float] = []
    step = engine.step

    def timed_step() -> Any:
        start = time.perf_counter()
        try:
            return step()
        finally:
            step_seconds.append(time.perf_counter() - start)

    engine.step = timed_step
    try:
        yield step_seconds
    finally:
        del engine.step  # the class's method is visible again


def _medians(rounds: list[list[float]]) -> list[float]:
    return [clock.median(step_seconds) for step_seconds in rounds]


def random_prompts(workload: RolloutWorkload, vocabulary: int) -> list[list[int]]:
    """The tokens of each prompt, the same on every rank."""
    random = torch.Generator().manual_seed(derive_seed("benchmark", "prompts"))
    size = (workload.prompts, workload.prompt_tokens)
    prompts: list[list[int]] = torch.randint(2, vocabulary, size, generator=random).tolist()
    return prompts


def _requests(workload: RolloutWorkload, vocabulary: int) -> list[Request]:
    ids = random_prompts(workload, vocabulary)
    requests = []
    for number in range(workload.prompts * workload.samples):
        seed = derive_seed("benchmark", "request", number)
        requests.append(Request(tuple(ids[number // workload.samples]), seed, workload.lengths.draw(seed), 1.0, 1.0))
    return requests


def _raw(generator: Any, requests: Sequence[Request], seeded: bool) -> None:
    from vllm import SamplingParams

    generator._llm.generate(
        [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
        [
            SamplingParams(
                seed=request.seed if seeded else None,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                ignore_eos=True,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for request in requests
        ],
        use_tqdm=False,
    )


def measure_sync(generator: Any, steps: int) -> Figures:
    """Seconds of a sync: the first one with its check, later ones, gathering alone, loading alone, waking included.

    The check of the first sync depends on the config. Collective.
    """
    source = generator.weights
    generator.sleep()
    first = clock.timed(generator.load_weights)
    later = clock.repeated(generator.load_weights, steps, warm_up=0)
    export = clock.repeated(lambda: _exhaust(source()), steps, warm_up=1)
    grown = clock.grown_gib(generator.load_weights)
    size, load = _load_alone(generator, steps)
    asleep = []
    for _ in range(steps):
        generator.sleep()
        asleep.append(clock.timed(generator.load_weights))
    return {
        "GB": size / 1e9,
        "seconds": clock.median(later),
        "seconds of each": [round(value, 3) for value in later],
        "GB/s": size / 1e9 / clock.median(later),
        "seconds, the first time": first,
        "seconds, gathering alone": clock.median(export),
        "seconds, loading alone": clock.median(load),
        "seconds, waking included": clock.median(asleep),
        "GiB while it goes on": grown,
    }


def _load_alone(generator: Any, steps: int) -> tuple[int, list[float]]:
    """Bytes of all weights, and seconds of each loading of them from this device's memory."""
    source = generator.weights
    gathered = [(name, tensor.clone()) for name, tensor in assemble_tensors(source())]
    generator.weights = lambda: iter(gathered)
    seconds = clock.repeated(generator.load_weights, steps, warm_up=0)
    generator.weights = source
    return sum(tensor.nbytes for _, tensor in gathered), seconds


def _exhaust(tensors: Any) -> None:
    for _ in tensors:
        pass
