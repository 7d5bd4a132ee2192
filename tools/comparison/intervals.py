"""Intervals of a mean over seeds and questions, by a bootstrap that resamples both.

All seeds answer the same questions, so a table of values [seeds, questions] has two crossed sources of chance. A
resample takes seeds with replacement, and questions with replacement, the same ones for all of its seeds. This is the
pigeonhole bootstrap (Owen, arXiv 0712.1111).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ENTRIES_PER_BATCH = 4_000_000
"""The numbers that one batch of resamples holds, which bounds the memory."""


@dataclass(frozen=True)
class Variances:
    """Estimated variances of the mean of a table [seeds, questions]."""

    seeds: float
    """The part that more seeds would reduce: sum (row mean - mean)^2 / (S (S - 1)). 0 for one seed."""
    questions: float
    """The part that more questions would reduce: sum (column mean - mean)^2 / (Q (Q - 1)). 0 for one question."""
    bootstrap: float
    """The variance of a resample's mean, in closed form."""
    freedom: float
    """Satterthwaite's degrees of freedom of the sum of the first two parts. 0 where both are 0."""

    @property
    def total(self) -> float:
        """The variance of the mean. It counts the interaction twice, which errs on the side of wider intervals."""
        return self.seeds + self.questions


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval. The ends are None for a single value."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies above or below 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def variances(values: np.ndarray) -> Variances:
    """Returns the variances of the mean of float [seeds, questions].

    With row effects a_s, column effects b_q and interactions e_sq of the two-way table, the variance of a resample's
    mean is mean(a^2) / S + mean(b^2) / Q + mean(e^2) / (S Q).
    """
    seeds, questions = values.shape
    rows = values.mean(1) - values.mean()
    columns = values.mean(0) - values.mean()
    interactions = values - values.mean() - rows[:, None] - columns
    by_seed = float((rows**2).sum() / (seeds * (seeds - 1))) if seeds > 1 else 0.0
    by_question = float((columns**2).sum() / (questions * (questions - 1))) if questions > 1 else 0.0
    spread = by_seed**2 / max(1, seeds - 1) + by_question**2 / max(1, questions - 1)
    return Variances(
        by_seed,
        by_question,
        float((rows**2).mean() / seeds + (columns**2).mean() / questions + (interactions**2).mean() / values.size),
        (by_seed + by_question) ** 2 / spread if spread else 0.0,
    )


def resampled_means(values: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """Returns float [resamples]: the mean of each table that has seeds and questions drawn with replacement."""
    generator = np.random.default_rng(seed)
    seeds, questions = values.shape
    means = []
    size = max(1, _ENTRIES_PER_BATCH // (seeds + questions))
    for first in range(0, resamples, size):
        count = min(size, resamples - first)
        rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        columns = generator.multinomial(questions, np.full(questions, 1 / questions), size=count) / questions
        means.append(((rows @ values) * columns).sum(1))
    return np.concatenate(means)


def crossed_interval(values: np.ndarray, *, seed: int, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """Returns the mean of float [seeds, questions] with its interval.

    The quantiles of the resamples' means are moved away from the mean by one factor: Student's quantile times the
    estimated standard error, over the normal quantile times the resamples' standard error. Five seeds would otherwise
    be covered too rarely: a resample of S seeds varies less than S new seeds, by (S - 1) / S. With one seed the
    interval is about questions alone.
    """
    from scipy import stats  # takes a second to import

    mean, spread = float(values.mean()), variances(values)
    if values.size < 2:
        return Interval(mean, None, None)
    if spread.total == 0 or spread.bootstrap == 0:
        return Interval(mean, mean, mean)
    tail = (1 - level) / 2
    quantile = stats.t.isf(tail, spread.freedom) / stats.norm.isf(tail)
    factor = quantile * (spread.total / spread.bootstrap) ** 0.5
    deviations = resampled_means(values, seed=seed, resamples=resamples) - mean
    low, high = np.quantile(deviations, [tail, 1 - tail])
    return Interval(mean, mean + factor * float(low), mean + factor * float(high))
