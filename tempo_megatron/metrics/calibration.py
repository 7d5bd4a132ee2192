"""Does the critic tell right from wrong, and does it mean what it says?

A response whose score is not finite takes no part in any figure.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def auroc(scores: Sequence[float], labels: Sequence[float]) -> float | None:
    """Probability that a correct response scores above a wrong one, ties counting half; None without both kinds."""
    return auroc_within_groups(scores, labels, [0] * len(scores))


def auroc_within_groups(scores: Sequence[float], labels: Sequence[float], groups: Sequence[object]) -> float | None:
    """The same over pairs of one group (the responses to one prompt), all groups' pairs pooled.

    This is what advantages use: a critic that only knows which prompts are hard has 0.5 here.
    """
    by_group: dict[object, tuple[list[float], list[float]]] = {}
    for score, label, group in zip(scores, labels, groups, strict=True):
        if math.isfinite(score):
            by_group.setdefault(group, ([], []))[int(label > 0.5)].append(score)
    pairs = won = 0.0
    for wrong, right in by_group.values():
        ordered = sorted(wrong)
        for score in right:
            won += (bisect_left(ordered, score) + bisect_right(ordered, score)) / 2
        pairs += len(wrong) * len(right)
    return won / pairs if pairs else None


def brier(scores: Sequence[float], labels: Sequence[float]) -> float | None:
    """Mean squared distance of scores from outcomes in {0, 1}; None without a score."""
    pairs = _finite(scores, labels)
    return sum((score - label) ** 2 for score, label in pairs) / len(pairs) if pairs else None


def expected_calibration_error(scores: Sequence[float], labels: Sequence[float], bins: int = 10) -> float | None:
    """Mean over responses of |mean score - share correct| of their bin, of `bins` equal bins of [0, 1]
    (arXiv 1706.04599, equation 3); None without a score. Scores outside [0, 1] count in the outermost bins."""
    pairs = _finite(scores, labels)
    members: dict[int, list[tuple[float, float]]] = {}
    for score, label in pairs:
        members.setdefault(min(bins - 1, max(0, int(score * bins))), []).append((score, label))
    gaps = [abs(sum(score - label for score, label in bin_)) for bin_ in members.values()]
    return sum(gaps) / len(pairs) if pairs else None


def _finite(scores: Sequence[float], labels: Sequence[float]) -> list[tuple[float, float]]:
    """The scores that are finite, each with its label."""
    return [(score, label) for score, label in zip(scores, labels, strict=True) if math.isfinite(score)]
