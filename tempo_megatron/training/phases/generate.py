"""Rollouts of the present policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.generation.requests import Request


def generate(
    engine: Engine,
    prompts: Sequence[tuple[str, Prompt]],
    *,
    seed: int,
    iteration: int | str,
    samples: int | Mapping[str, int],
    max_tokens: int,
    temperature: float,
    top_p: float,
) -> list[Rollout]:
    """`samples` rollouts (by stream, where they differ) of each (stream, prompt), in order, from one generate call.

    A request's seed is hashed from run seed, iteration, stream, prompt and sample: what else is generated beside it
    does not change it. A prompt that comes twice, as when a pass ends, goes on counting its samples.
    """
    wanted: list[tuple[str, Prompt, int]] = []
    taken: dict[tuple[str, str], int] = {}
    for stream, prompt in prompts:
        count = samples if isinstance(samples, int) else samples[stream]
        first = taken.get((stream, prompt.id), 0)
        taken[stream, prompt.id] = first + count
        wanted += [(stream, prompt, first + number) for number in range(count)]
    requests = [
        Request(
            prompt_ids=prompt.token_ids,
            seed=derive_seed(seed, iteration, stream, prompt.id, sample),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
        )
        for stream, prompt, sample in wanted
    ]
    completions = engine.generate(requests)
    return [
        Rollout(prompt, sample, done.response_ids, done.log_probs, done.finish_reason)
        for (_, prompt, sample), done in zip(wanted, completions, strict=True)
    ]
