"""Distributions that response lengths are drawn from."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_SPREAD = 0.8
"""standard deviation of the logarithm of a log-normal length"""


@dataclass(frozen=True)
class Lengths:
    """`uniform:LOW:HIGH`, `median:MEDIAN:MAXIMUM` or `mean:MEAN:MAXIMUM`, the last two log-normal and cut at the
    maximum (which takes a little off the mean)."""

    kind: str
    first: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Raises ValueError."""
        kind, first, most = text.split(":")
        if kind not in ("uniform", "median", "mean"):
            raise ValueError(f"{text}: uniform:LOW:HIGH, median:MEDIAN:MAXIMUM or mean:MEAN:MAXIMUM")
        return cls(kind, int(first), int(most))

    def draw(self, seed: object) -> int:
        """The length that this seed stands for, the same on every rank."""
        random_ = random.Random(repr(seed))
        if self.kind == "uniform":
            return random_.randint(self.first, self.most)
        shift = _SPREAD**2 / 2 if self.kind == "mean" else 0.0
        drawn = round(random_.lognormvariate(math.log(self.first) - shift, _SPREAD))
        return min(max(1, drawn), self.most)
