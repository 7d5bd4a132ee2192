"""Distributions of response lengths."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_SPREAD = 0.8
"""The standard deviation of the logarithm of a log-normal length."""


@dataclass(frozen=True)
class Lengths:
    """A distribution: `uniform:LOW:HIGH`, `median:MEDIAN:MAXIMUM` or `mean:MEAN:MAXIMUM`.

    The last two are log-normal. Lengths above the maximum are cut, which lowers the mean a little.
    """

    kind: str
    first: int
    """LOW, MEDIAN or MEAN."""
    maximum: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """The distribution that `text` names. Raises ValueError for any other text."""
        kind, first, maximum = text.split(":")
        if kind not in ("uniform", "median", "mean"):
            raise ValueError(f"{text}: expected uniform:LOW:HIGH, median:MEDIAN:MAXIMUM or mean:MEAN:MAXIMUM")
        return cls(kind, int(first), int(maximum))

    def draw(self, seed: object) -> int:
        """The length for this seed; it is the same on every rank."""
        random_ = random.Random(repr(seed))
        if self.kind == "uniform":
            return random_.randint(self.first, self.maximum)
        shift = _SPREAD**2 / 2 if self.kind == "mean" else 0.0
        tokens = round(random_.lognormvariate(math.log(self.first) - shift, _SPREAD))
        return min(max(1, tokens), self.maximum)
