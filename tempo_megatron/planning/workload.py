"""Describes the work of a run that its recipe does not say: response lengths, questions and storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_QUANTILES = 16
"""The number of response lengths that stand for a uniform distribution."""


@dataclass(frozen=True)
class Workload:
    """What a recipe does not say about the work of a run."""

    lengths: tuple[int, ...]
    """The tokens of responses, as equally likely values."""
    prompt: int = 256
    """The tokens of a prompt."""
    questions: int = 300
    """The number of questions of each evaluation."""
    storage_gbs: float = 2.0
    """The GB/s that all nodes together write."""
    uniform_share: float = 0.5
    """The share of labeled prompts whose responses all score alike."""

    @classmethod
    def uniform(cls, mean: int, longest: int, **fields: Any) -> Workload:
        """Return a workload of responses between 0 and twice the mean, cut at `longest`."""
        lengths = (2 * mean * (index + 0.5) / _QUANTILES for index in range(_QUANTILES))
        return cls(tuple(max(1, min(longest, round(length))) for length in lengths), **fields)

    @property
    def mean(self) -> float:
        return self.average(lambda length: length)

    def average(self, function: Callable[[int], float]) -> float:
        """Return the mean over responses of a function of their length."""
        return sum(map(function, self.lengths)) / len(self.lengths)
