"""Endless streams of shuffled items. The order depends on the seed only, so a checkpoint stores only the position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tempo_megatron.data.seeds import derive_seed


class Stream[Item]:
    """Repeats passes over a sequence of items, each pass in another order. `position` is the number of items taken.

    An item of weight w occurs w times a pass on average: each pass has it floor(w) or ceil(w) times. Weight 0.5 means
    every other pass. Without weights every item occurs once a pass.
    """

    def __init__(self, items: Sequence[Item], seed: int, name: str, weights: Sequence[float] | None = None) -> None:
        self._items = items
        self._seed = seed
        self._name = name
        self._weights = weights
        self._order: list[int] = []
        """The item indices of the current pass."""
        self._pass = -1
        self._pass_end = 0
        """The position at which the current pass ends."""
        self.position = 0

    @property
    def passes(self) -> float:
        """The number of completed passes, with the fraction of the current one."""
        if not self._items:
            return 0.0
        self._enter_pass()
        pass_start = self._pass_end - len(self._order)
        return self._pass + (self.position - pass_start) / len(self._order)

    def take(self, count: int) -> list[Item]:
        """Return the next `count` items and move `position` past them."""
        items: list[Item] = []
        while len(items) < count:
            self._enter_pass()
            start = self.position - self._pass_end + len(self._order)
            indices = self._order[start : start + count - len(items)]
            items += [self._items[index] for index in indices]
            self.position += len(indices)
        return items

    def _enter_pass(self) -> None:
        """Shuffle the pass that contains `position`. Where `position` moved back, begin again at the first pass."""
        if self.position < self._pass_end - len(self._order):
            self._pass, self._pass_end, self._order = -1, 0, []
        while self.position >= self._pass_end:
            self._pass += 1
            self._order = self._shuffled_indices(self._pass)
            self._pass_end += len(self._order)

    def _shuffled_indices(self, pass_number: int) -> list[int]:
        indices = [index for index in range(len(self._items)) for _ in range(self._occurrences(index, pass_number))]
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "stream", self._name, pass_number))
        return [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]

    def _occurrences(self, index: int, pass_number: int) -> int:
        """Return how often an item of weight w occurs in a pass.

        It is the number of integers in the interval from w * pass + u to w * (pass + 1) + u. The offset u, from 0 to 1,
        is hashed for each item.
        """
        if self._weights is None:
            return 1
        weight = self._weights[index]
        offset = derive_seed(self._seed, "weight", self._name, index) / 2**31
        return math.floor(weight * (pass_number + 1) + offset) - math.floor(weight * pass_number + offset)
