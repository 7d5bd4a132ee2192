"""Samples rollouts of the current policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.recorded import Engine
from tempo_megatron.generation.requests import Request
from tempo_megatron.training.phases.length_history import LengthHistory


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
    history: LengthHistory | None = None,
) -> list[Rollout]:
    """Return `samples` rollouts of each (stream, prompt), in order, from one generate call.

    A mapping gives the number of samples by stream. A request's seed is hashed from run seed, iteration, stream, prompt
    and sample, so other requests of the same call do not change it. A prompt that occurs twice, as when a pass over the
    data ends, continues the numbering of its samples. Requests have the expected lengths of `history`, which then
    observes the rollouts.
    """
    numbered: list[tuple[str, Prompt, int]] = []
    counts: dict[tuple[str, str], int] = {}
    for stream, prompt in prompts:
        count = samples if isinstance(samples, int) else samples[stream]
        first = counts.get((stream, prompt.id), 0)
        counts[stream, prompt.id] = first + count
        numbered += [(stream, prompt, first + number) for number in range(count)]
    requests = [
        Request(
            prompt_ids=prompt.token_ids,
            seed=derive_seed(seed, iteration, stream, prompt.id, sample),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            expected_tokens=history.expected_tokens.get(prompt.id) if history else None,
        )
        for stream, prompt, sample in numbered
    ]
    completions = engine.generate(requests)
    rollouts = [
        Rollout(prompt, sample, completion.response_ids, completion.log_probs, completion.finish_reason)
        for (_, prompt, sample), completion in zip(numbered, completions, strict=True)
    ]
    if history:
        history.observe(rollouts)
    return rollouts
