"""How well the critic separates right from wrong responses, and how well its scores match the share of right ones.

Every function ignores responses whose score is not finite.

AUROC is computed here, not by a library: scikit-learn's differs in the last bit in a third of all cases, and
transformers imports scikit-learn in every rank once it is installed. SciPy's ranks would give the same bits, but their
import takes two seconds in every rank. scikit-learn's Brier score refuses scores outside [0, 1], and it has no expected
calibration error.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class CalibrationBin(NamedTuple):
    """The responses whose scores lie in one interval."""

    responses: int
    mean_score: float
    share_right: float


def auroc(scores: Sequence[float], labels: Sequence[float]) -> float | None:
    """Returns the probability that a correct response scores above a wrong one. A tie counts half. None where all
    responses are correct or all are wrong."""
    return auroc_within_groups(scores, labels, [0] * len(scores))


def auroc_within_groups(scores: Sequence[float], labels: Sequence[float], groups: Sequence[object]) -> float | None:
    """Returns the AUROC over the pairs of responses that share a group (a prompt), with the pairs of all groups pooled.

    Advantages compare the responses to one prompt. A critic that only knows which prompts are hard has 0.5 here.
    """
    scores_by_group: dict[object, tuple[list[float], list[float]]] = {}
    for score, label, group in zip(scores, labels, groups, strict=True):
        if math.isfinite(score):
            scores_by_group.setdefault(group, ([], []))[int(label > 0.5)].append(score)
    pairs = concordant_pairs = 0.0
    for wrong_scores, right_scores in scores_by_group.values():
        ordered = sorted(wrong_scores)
        for score in right_scores:
            concordant_pairs += (bisect_left(ordered, score) + bisect_right(ordered, score)) / 2
        pairs += len(wrong_scores) * len(right_scores)
    return concordant_pairs / pairs if pairs else None


def brier(scores: Sequence[float], labels: Sequence[float]) -> float | None:
    """Returns the mean squared distance of scores from labels in {0, 1}; None without a score."""
    pairs = _finite_pairs(scores, labels)
    return sum((score - label) ** 2 for score, label in pairs) / len(pairs) if pairs else None


def expected_calibration_error(scores: Sequence[float], labels: Sequence[float], bins: int = 10) -> float | None:
    """Returns the expected calibration error over `bins` equal bins of [0, 1] (arXiv 1706.04599, equation 3): the mean
    over responses of |mean score - share correct| of the response's bin. None without a score. Scores outside [0, 1]
    count in the outermost bins."""
    pairs_by_bin = _pairs_by_bin(scores, labels, bins)
    gaps = [abs(sum(score - label for score, label in pairs)) for pairs in pairs_by_bin.values()]
    return sum(gaps) / sum(map(len, pairs_by_bin.values())) if gaps else None


def calibration_bins(scores: Sequence[float], labels: Sequence[float], bins: int = 10) -> list[CalibrationBin]:
    """Returns the bins of `expected_calibration_error` that hold a response, the lowest scores first."""
    pairs_by_bin = _pairs_by_bin(scores, labels, bins)
    return [
        CalibrationBin(
            len(pairs), sum(score for score, _ in pairs) / len(pairs), sum(label for _, label in pairs) / len(pairs)
        )
        for _, pairs in sorted(pairs_by_bin.items())
    ]


def _pairs_by_bin(scores: Sequence[float], labels: Sequence[float], bins: int) -> dict[int, list[tuple[float, float]]]:
    """Returns the finite scores with their labels, by bin."""
    pairs_by_bin: dict[int, list[tuple[float, float]]] = {}
    for score, label in _finite_pairs(scores, labels):
        pairs_by_bin.setdefault(min(bins - 1, max(0, int(score * bins))), []).append((score, label))
    return pairs_by_bin


def _finite_pairs(scores: Sequence[float], labels: Sequence[float]) -> list[tuple[float, float]]:
    """Returns the finite scores, each with its label."""
    return [(score, label) for score, label in zip(scores, labels, strict=True) if math.isfinite(score)]
