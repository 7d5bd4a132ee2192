"""Confidence intervals over questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ENTRIES_PER_BATCH = 4_000_000
"""The numbers that one batch of resamples holds, which bounds the memory."""
_MAXIMUM_Z = 8.0
"""A larger normal quantile has a probability that a float cannot tell from 0."""


def confidence_interval(
    values: Sequence[float], *, seed: int, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float] | None:
    """Returns the bootstrap interval of the mean of `values`, which has one value per question; None for fewer than
    two values.

    The interval is bias-corrected and accelerated (BCa, Efron 1987). It is widened for small samples by Student's t and
    n / (n - 1), as in arXiv 1411.5279, section 3.4: the plain interval covers too rarely at thirty questions. Its ends
    stay within the range of the values. Equal values have an interval of width 0, because resampling cannot know of
    values that were not seen.
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return None
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    low, high = bca_bounds(sample, seed=seed, level=level, resamples=resamples)
    return float(low), float(high)


def bca_bounds(samples: np.ndarray, *, seed: int, level: float, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the widened BCa intervals of `samples`, float [..., questions]; each end is [...].

    An end is NaN where all values of a sample are equal.
    """
    from scipy import stats  # takes a second to import, and only reports need it

    interval = stats.bootstrap(
        (samples,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        batch=max(1, _ENTRIES_PER_BATCH // samples.size),
        confidence_level=_widened_level(level, samples.shape[-1]),
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def _widened_level(level: float, count: int) -> float:
    """Returns the level at which a normal quantile is as large as Student's at `level`, times sqrt(n / (n - 1))."""
    from scipy import stats

    z = (count / (count - 1)) ** 0.5 * stats.t.ppf((1 + level) / 2, count - 1)
    return float(1 - 2 * stats.norm.sf(min(z, _MAXIMUM_Z)))
