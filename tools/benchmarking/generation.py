"""Sections rollout and sync: the generator beside the vLLM that it drives, and weights on their way into it."""

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
from tempo_megatron.generation.engine import Generator, Request
from tempo_megatron.megatron import weights


@dataclass(frozen=True)
class Rollouts:
    """What is generated, `rounds` times each way: `samples` responses to each of `prompts` prompts in all."""

    prompts: int
    samples: int
    prompt_tokens: int
    lengths: Lengths
    rounds: int


def start(setup: Setup) -> Generator:
    """A generator that pulls its weights from a policy without an optimizer."""
    config, module = setup.config, build(setup, "policy")
    entries = decoder.policy_mappings(setup.settings)
    return Generator(
        Path(config.model.hf_path),
        config.generation,
        tensor_parallel_size=config.generation.tensor_parallel_size or setup.place.tensor_size,
        max_model_len=config.data.max_prompt_tokens + config.generation.max_response_tokens,
        dtype=next(module.parameters()).dtype,
        eos_token_ids=[],
        seed=config.seed,
        weights=lambda: weights.export(module, entries, setup.place),
    )


def measure_rollout(setup: Setup, generator: Any, load: Rollouts) -> Figures:
    """Tokens/s/GPU of `Generator.generate`, and of `LLM.generate` on the same engine with the same requests, dealt to
    the replicas beforehand; with and without a seed for each request, which vLLM then samples one by one. Ways
    take turns at being first, and the prefix cache is empty before each. Steps are those of the first rank's engine.
    Collective."""
    requests = _requests(load, setup.settings.vocab_size)
    tokens = sum(request.max_tokens for request in requests)
    mine = requests[generator.replica :: generator.replicas]
    generator.generate(requests[: 2 * generator.replicas])
    ways = {
        "ours": lambda: generator.generate(requests),
        "raw vLLM": lambda: _raw(generator, mine, seeded=True),
        "raw vLLM, unseeded": lambda: _raw(generator, mine, seeded=False),
    }
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[list[float]]] = {name: [] for name in ways}
    generator.take_figures()
    drawn = []
    for number in range(load.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            generator._llm.reset_prefix_cache()
            with _watched_steps(generator._llm.llm_engine) as found:
                seconds[name].append(clock.timed(ways[name]))
            steps[name].append(found)
            if figures := generator.take_figures():
                drawn.append([int(figures[f"replica_requests_{which}"]) for which in ("least", "most")])
    speed = {name: tokens / clock.median(found) / setup.place.world_size for name, found in seconds.items()}
    return {
        "requests": len(requests),
        "tokens": tokens,
        "tokens/s/GPU": speed,
        "seconds of each": {name: [round(value, 3) for value in found] for name, found in seconds.items()},
        "requests that a replica drew, least and most, of each": drawn,
        "engine steps of each": {name: [len(found) for found in rounds] for name, rounds in steps.items()},
        "seconds in them": {name: [round(sum(found), 3) for found in rounds] for name, rounds in steps.items()},
        "seconds of the middle step": {name: _middle(rounds) for name, rounds in steps.items()},
        "seconds of the longest step": {name: [max(found) for found in rounds] for name, rounds in steps.items()},
        "ours / raw": speed["ours"] / speed["raw vLLM"],
        "ours / raw unseeded": speed["ours"] / speed["raw vLLM, unseeded"],
    }


@contextlib.contextmanager
def _watched_steps(engine: Any) -> Iterator[list[float]]:
    """Seconds of each step of this rank's engine, as the host sees them: nothing waits for the device."""
    found: list[float] = []
    step = engine.step

    def watched() -> Any:
        begun = time.perf_counter()
        try:
            return step()
        finally:
            found.append(time.perf_counter() - begun)

    engine.step = watched
    try:
        yield found
    finally:
        del engine.step  # the class's own is seen again


def _middle(rounds: list[list[float]]) -> list[float]:
    return [clock.median(found) for found in rounds]


def _requests(load: Rollouts, vocabulary: int) -> list[Request]:
    random = torch.Generator().manual_seed(derive_seed("benchmark", "prompts"))
    ids = torch.randint(2, vocabulary, (load.prompts, load.prompt_tokens), generator=random).tolist()
    made = []
    for number in range(load.prompts * load.samples):
        seed = derive_seed("benchmark", "request", number)
        made.append(Request(tuple(ids[number // load.samples]), seed, load.lengths.draw(seed), 1.0, 1.0))
    return made


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
    """Seconds of a whole sync, the first (with its check, where the config asks for one) and later ones; of gathering
    the tensors alone; of loading them alone, once gathered; and of a sync into an engine that slept. Collective."""
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
    """Bytes of all weights, and seconds of loading them from memory of this device."""
    source = generator.weights
    held = [(name, tensor.clone()) for name, tensor in assemble_tensors(source())]
    generator.weights = lambda: iter(held)
    seconds = clock.repeated(generator.load_weights, steps, warm_up=0)
    generator.weights = source
    return sum(tensor.nbytes for _, tensor in held), seconds


def _exhaust(tensors: Any) -> None:
    for _ in tensors:
        pass
