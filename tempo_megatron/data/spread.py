"""Orders prompts so that a subset represents every source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tempo_megatron.data.seeds import derive_seed
from tempo_megatron.data.types import Prompt


def spread_over_sources(prompts: Sequence[Prompt], purpose: str) -> list[Prompt]:
    """Return the prompts in an order in which the first n hold every source in proportion to its size, for every n.

    The order begins with one prompt of each source. Within a source it is hashed from the purpose and the prompt's id,
    so that it depends on neither files nor the run's seed.
    """
    hashed_order = sorted(prompts, key=lambda prompt: derive_seed(purpose, prompt.id))
    sizes = Counter(prompt.source for prompt in prompts)
    counts: Counter[str] = Counter()
    positions: dict[str, float] = {}
    for prompt in hashed_order:
        positions[prompt.id] = counts[prompt.source] / sizes[prompt.source]
        counts[prompt.source] += 1
    return sorted(hashed_order, key=lambda prompt: positions[prompt.id])
