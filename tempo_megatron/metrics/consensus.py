"""cons@k of one question: whether the answer that most of k responses give is right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb

import numpy as np

Clusters = Sequence[int | None]
"""A number for each response, equal for equivalent answers; None for a response without an answer."""


def cons_at_k(correct: Sequence[float], clusters: Clusters, k: int) -> float:
    """Returns the expected correctness of the plurality answer of k of the n responses, over all C(n, k) subsets.

    A response without an answer has no vote; a subset without votes counts as wrong. Clusters that tie share the win
    evenly. A cluster's correctness is the mean grade of its responses; these differ only if the grader contradicts
    itself. Needs k <= n.
    """
    grades: dict[int, list[float]] = {}
    for grade, cluster in zip(correct, clusters, strict=True):
        if cluster is not None:
            grades.setdefault(cluster, []).append(grade)
    groups = sorted(grades.values(), key=len)
    sizes = tuple(len(group) for group in groups)
    wins = _win_probabilities(sizes, len(correct) - sum(sizes), k)
    return sum(win * sum(group) / len(group) for win, group in zip(wins, groups, strict=True))


@lru_cache(maxsize=4096)
def _win_probabilities(sizes: tuple[int, ...], answerless: int, k: int) -> tuple[float, ...]:
    """Returns, for each cluster, the probability that it wins among k responses drawn without replacement."""
    subsets = comb(sum(sizes) + answerless, k)
    by_size = {}
    for size in set(sizes):
        others = list(sizes)
        others.remove(size)
        ways = sum(
            comb(size, votes) * float((_ways(others, answerless, votes, k - votes) / _winner_counts(k, votes)).sum())
            for votes in range(1, min(size, k) + 1)
        )
        by_size[size] = ways / subsets
    return tuple(by_size[size] for size in sizes)


def _winner_counts(k: int, votes: int) -> np.ndarray:
    """Returns the number of winners with `votes` votes each, by the number of clusters that tie with the first."""
    return np.arange(1, k // votes + 1, dtype=float)


def _ways(others: Sequence[int], answerless: int, votes: int, draws: int) -> np.ndarray:
    """Returns the number of ways to draw `draws` responses from the other clusters and from those without an answer so
    that no cluster has more than `votes`, by the number of clusters that have exactly `votes`.

    These are the coefficients of a product of generating functions.
    """
    ties = (draws + votes) // votes
    ways = np.zeros((draws + 1, ties))
    ways[0, 0] = 1.0
    for size in others:
        product = np.zeros_like(ways)
        for count in range(min(size, votes, draws) + 1):
            tied = int(count == votes)
            product[count:, tied:] += comb(size, count) * ways[: draws + 1 - count, : ties - tied]
        ways = product
    answerless_ways = np.array([comb(answerless, draws - count) for count in range(draws + 1)], dtype=float)
    return answerless_ways @ ways
