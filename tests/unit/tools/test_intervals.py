"""tools/comparison/intervals.py: intervals over seeds and questions, against closed forms and by their coverage."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from comparison.intervals import crossed_interval, resampled_means, variances
from scipy import stats


def test_the_variance_of_a_resample_is_that_of_all_resamples() -> None:
    """The closed form equals the variance over every possible draw of seeds and of questions."""
    values = np.array([[0.0, 1.0, 0.25], [0.5, 0.75, 1.0]])
    means = [
        values[np.ix_(rows, columns)].mean()
        for rows in product(range(2), repeat=2)
        for columns in product(range(3), repeat=3)
    ]
    assert variances(values).bootstrap == pytest.approx(np.var(means), rel=1e-12)
    samples = resampled_means(values, seed=1, resamples=20_000)
    assert samples.mean() == pytest.approx(values.mean(), abs=4e-3)
    assert samples.var() == pytest.approx(np.var(means), rel=0.05)


def test_variances_of_seeds_and_questions_are_those_of_their_means() -> None:
    """Each is the squared standard error of one way's means. The freedom lies between those of both."""
    values = np.random.default_rng(0).normal(size=(4, 9))
    spread = variances(values)
    assert spread.seeds == pytest.approx(stats.sem(values.mean(1)) ** 2)
    assert spread.questions == pytest.approx(stats.sem(values.mean(0)) ** 2)
    assert 3 <= spread.freedom <= 3 + 8
    rows_alone = np.repeat(values[:, :1], 9, axis=1)
    assert (variances(rows_alone).freedom, variances(rows_alone).questions) == (pytest.approx(3), pytest.approx(0))


def test_one_seed_has_students_interval_over_questions() -> None:
    values = np.random.default_rng(2).normal(size=(1, 200))
    interval = crossed_interval(values, seed=0)
    low, high = stats.t.interval(0.95, 199, loc=values.mean(), scale=stats.sem(values[0]))
    assert (interval.low, interval.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_five_seeds_are_covered_as_often_as_the_level_says() -> None:
    """Seeds that differ dominate the variance here. Plain percentiles of resamples cover too rarely."""
    generator = np.random.default_rng(3)
    trials, covered, plainly_covered = 300, 0, 0
    for trial in range(trials):
        seeds, questions = generator.normal(0, 0.1, size=(5, 1)), generator.normal(0, 0.1, size=(1, 20))
        values = 0.2 + seeds + questions + generator.normal(0, 0.1, size=(5, 20))
        interval = crossed_interval(values, seed=trial, resamples=200)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0.2 <= interval.high
        low, high = np.quantile(resampled_means(values, seed=trial, resamples=200), [0.025, 0.975])
        plainly_covered += low <= 0.2 <= high
    assert 0.93 <= covered / trials <= 0.99
    assert plainly_covered / trials < 0.9


def test_what_does_not_vary_has_no_width_and_a_single_value_no_interval() -> None:
    constant = crossed_interval(np.full((3, 4), 0.5), seed=0)
    assert (constant.mean, constant.low, constant.high) == (0.5, 0.5, 0.5) and constant.excludes_zero
    single = crossed_interval(np.array([[0.5]]), seed=0)
    assert (single.low, single.high, single.excludes_zero) == (None, None, False)
