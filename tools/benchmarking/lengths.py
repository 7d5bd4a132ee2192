"""Distributions of response lengths."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

_SPREAD = 0.8
"""The standard deviation of the logarithm of a log-normal length."""
_QUESTION_SHARE = 0.5
"""The share of a question in the variance of its responses' lengths. The rest is within the question."""


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
        if self.kind == "uniform":
            return random.Random(repr(seed)).randint(self.first, self.maximum)
        return self._log_normal(_normal(seed))

    def draw_of_question(self, question: object, seed: object) -> int:
        """The length of a response to a question. Over all questions it has the same distribution as `draw`.

        Half of the variance is the question's, so that the lengths of earlier responses predict those of later ones.
        """
        question_part = math.sqrt(_QUESTION_SHARE) * _normal(("question", question))
        normal = question_part + math.sqrt(1 - _QUESTION_SHARE) * _normal(seed)
        if self.kind == "uniform":
            width = self.maximum - self.first + 1
            return self.first + min(width - 1, int(width * statistics.NormalDist().cdf(normal)))
        return self._log_normal(normal)

    def _log_normal(self, normal: float) -> int:
        """The log-normal length at this value of a standard normal variable."""
        shift = _SPREAD**2 / 2 if self.kind == "mean" else 0.0
        tokens = round(math.exp(math.log(self.first) - shift + normal * _SPREAD))
        return min(max(1, tokens), self.maximum)


def _normal(seed: object) -> float:
    return random.Random(repr(seed)).normalvariate(0.0, 1.0)
