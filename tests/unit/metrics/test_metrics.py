"""Estimates of accuracy and of the critic's judgment against their definitions."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.metrics.calibration import (
    auroc,
    auroc_within_groups,
    brier,
    calibration_bins,
    expected_calibration_error,
)
from tempo_megatron.metrics.evidence import evidence_terms
from tempo_megatron.metrics.pass_at_k import pass_at_k
from tempo_megatron.metrics.question_metrics import Samples, mean_over_questions, question_metrics
from tempo_megatron.training.phases.critic_metrics import value_evidence, value_metrics

SIX = range(7)


@pytest.mark.parametrize("correct", SIX)
@pytest.mark.parametrize("k", SIX[1:])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(correct: int, k: int) -> None:
    """The unbiased estimate is an average over all ways to choose k of the n samples."""
    samples = [1] * correct + [0] * (6 - correct)
    subsets = list(combinations(samples, k))
    assert pass_at_k(correct, 6, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def measured(grades: list[int], k: int) -> dict[str, float]:
    samples = Samples(grades, grades, ["a b"] * len(grades), [3] * len(grades), [False] * len(grades))
    return question_metrics(samples, average_at=k, k=[k], ngrams=[1, 2, 3])


def test_a_summary_averages_over_questions_not_samples() -> None:
    """Standard errors are over questions: samples of one question are not independent evidence."""
    metrics = mean_over_questions([measured(grades, k=2) for grades in ([1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0])])
    assert metrics["avg@2"] == pytest.approx(0.5)
    assert metrics["pass@2"] == pytest.approx((1 + 0 + 5 / 6) / 3)
    assert metrics["avg@2_standard_error"] == pytest.approx(0.5 / 3**0.5)


def test_a_figure_that_a_question_lacks_is_averaged_over_the_others() -> None:
    """A question whose responses are too short for an n-gram says nothing of n-grams."""
    short, long = measured([1, 0], k=1), measured([1, 0], k=1) | {"distinct_3grams": 0.25}
    assert "distinct_3grams" not in short
    assert mean_over_questions([short, long])["distinct_3grams"] == 0.25
    assert mean_over_questions([short, long])["distinct_2grams"] == 0.5


def test_a_critic_that_only_knows_hard_prompts_has_half_within_prompts() -> None:
    """The advantage subtracts the prompt's own value, so that AUROC over all flatters such a critic."""
    scores, labels, prompts = [0.9, 0.9, 0.9, 0.1, 0.1, 0.1], [1.0, 1, 0, 1, 0, 0], list("aaabbb")
    assert auroc_within_groups(scores, labels, prompts) == 0.5
    assert auroc(scores, labels) == pytest.approx((2 * 0.5 + 2 * 2 + 2 * 0.5) / 9 - 0.0)
    assert auroc([0.2, 0.3], [1.0, 1.0]) is None
    assert brier([0.5, 1.0], [1.0, 1.0]) == pytest.approx(0.125)


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    """Two bins of ten: |0.15 - 0.5| of two responses and |0.8 - 1| of one; a perfect critic has 0."""
    assert expected_calibration_error([0.1, 0.19, 0.8], [0.0, 1, 1]) == pytest.approx((2 * 0.355 + 0.2) / 3)
    assert expected_calibration_error([1.0, 0.0, 1.4], [1.0, 0, 1]) == pytest.approx(0.4 / 3)
    assert calibration_bins([0.8, 0.1, 0.19, math.nan], [1.0, 0, 1, 1]) == [
        (2, pytest.approx(0.145), 0.5),
        (1, 0.8, 1.0),
    ]
    assert calibration_bins([math.inf], [1.0]) == [] and expected_calibration_error([math.inf], [1.0]) is None


def test_the_evidence_bound_is_the_difference_of_its_terms_and_the_log_of_the_mean() -> None:
    """By hand: beliefs 0.2 and 0.6 give q = (1/4, 3/4); a question with equal beliefs has no divergence."""
    metrics = evidence_terms([[0.2, 0.6], [0.5, 0.5]])
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    correctness = 0.25 * math.log(0.2) + 0.75 * math.log(0.6)
    assert metrics["divergence_from_policy"] == pytest.approx(divergence / 2)
    assert metrics["expected_log_correctness"] == pytest.approx((correctness + math.log(0.5)) / 2)
    assert metrics["bound"] == pytest.approx(metrics["expected_log_correctness"] - metrics["divergence_from_policy"])
    assert metrics["bound"] == pytest.approx((math.log(0.4) + math.log(0.5)) / 2)


def test_the_evidence_bound_is_never_above_the_true_log_evidence() -> None:
    """Jensen: averaged over draws of n responses, log mean V is at most log E[V], and nears it with n."""
    exact = math.log(0.5)
    pairs = [evidence_terms([[a, b]])["bound"] for a in (0.2, 0.8) for b in (0.2, 0.8)]
    singles = [evidence_terms([[a]])["bound"] for a in (0.2, 0.8)]
    assert sum(singles) / 2 < sum(pairs) / 4 < exact


def test_the_critic_is_measured_on_the_way_through_a_response() -> None:
    """At a share s of a response of T tokens the value after s T of them is read; 0 is the last prompt token."""
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    read = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.9], [7.0, 0.6, 0.5, 0.2, 7.0]])
    rollouts = [Rollout(Prompt(name, (1,), "here", "exact"), 0, (), (), "stop") for name in "ab"]
    metrics = value_metrics(read, mask, rollouts, [1.0, 0.0])
    assert metrics["brier_at_000"] == pytest.approx((0.9**2 + 0.6**2) / 2)
    assert metrics["brier_at_050"] == pytest.approx((0.7**2 + 0.5**2) / 2)
    assert metrics["brier"] == pytest.approx((0.1**2 + 0.2**2) / 2)
    assert metrics["auroc"] == 1.0 and metrics["auroc_at_000"] == 0.0


def test_a_value_that_is_not_finite_is_counted_and_takes_no_part() -> None:
    """One NaN among the critic's values ended a run in its calibration figures; the figures are the others'."""
    mask = torch.tensor([[0, 1, 1]]).bool().expand(3, 3)
    read = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.5, float("nan")], [0.4, 0.3, 0.2]])
    rollouts = [Rollout(Prompt(name, (1,), "here", "exact"), 0, (), (), "stop") for name in "aab"]
    correct = [1.0, 1.0, 0.0]
    metrics, without = (
        value_metrics(read[rows], mask[rows], [rollouts[row] for row in rows], [correct[row] for row in rows])
        for rows in ([0, 1, 2], [0, 2])
    )
    assert (metrics["non_finite_values"], without["non_finite_values"]) == (1.0, 0.0)
    for name in ("auroc", "brier", "calibration_error", "mean_value"):
        assert metrics[name] == without[name], name
    none = value_metrics(torch.full((3, 3), float("inf")), mask, rollouts, correct)
    assert none == {"non_finite_values": 3.0, "correct": pytest.approx(2 / 3)}
    assert value_evidence(read[:, -1], rollouts, 0.0) == value_evidence(
        read[[0, 2], -1], [rollouts[0], rollouts[2]], 0.0
    )
    assert value_evidence(torch.full((3,), float("nan")), rollouts, 0.0) == {}


def test_auroc_has_the_bits_of_scipys_ranks() -> None:
    """With ties, over random scores: AUROC is the Mann-Whitney statistic over the number of pairs."""
    random = np.random.default_rng(0)
    for digits in (1, 2, 9):
        for size in (5, 50, 200):
            scores = random.random(size).round(digits)
            labels = np.arange(size) % 3 == 0
            statistic = mannwhitneyu(scores[labels], scores[~labels]).statistic
            expected = float(statistic / (labels.sum() * (~labels).sum()))
            assert auroc(scores.tolist(), labels.astype(float).tolist()) == expected
