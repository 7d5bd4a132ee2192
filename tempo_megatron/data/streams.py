"""Prompts in a shuffled order that depends on the seed alone, and that a checkpoint holds as one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tempo_megatron.data.seeds import derive_seed


class Stream[Item]:
    """Endless passes over some items, each pass in an order of its own. `position` counts items taken."""

    def __init__(self, items: Sequence[Item], seed: int, name: str) -> None:
        self._items = items
        self._seed = seed
        self._name = name
        self.position = 0

    @property
    def passes(self) -> float:
        """How often the items have been gone through."""
        return self.position / len(self._items)

    def take(self, count: int) -> list[Item]:
        taken: list[Item] = []
        while len(taken) < count:
            number, start = divmod(self.position, len(self._items))
            order = self._order(number)[start : start + count - len(taken)]
            taken += [self._items[index] for index in order]
            self.position += len(order)
        return taken

    def _order(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "stream", self._name, number))
        order: list[int] = torch.randperm(len(self._items), generator=generator).tolist()
        return order
