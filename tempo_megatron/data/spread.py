"""A part of some prompts that every source takes part in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt


def spread_over_sources(prompts: Sequence[Prompt], purpose: str) -> list[Prompt]:
    """The prompts in an order whose every beginning has of each source in proportion to its size.

    The first prompts are one of each source. Within a source the order is hashed from the purpose and the prompt's id,
    so that it follows neither files nor the run's seed.
    """
    hashed = sorted(prompts, key=lambda prompt: derive_seed(purpose, prompt.id))
    sizes = Counter(prompt.source for prompt in prompts)
    taken: Counter[str] = Counter()
    places: dict[str, float] = {}
    for prompt in hashed:
        places[prompt.id] = taken[prompt.source] / sizes[prompt.source]
        taken[prompt.source] += 1
    return sorted(hashed, key=lambda prompt: places[prompt.id])
