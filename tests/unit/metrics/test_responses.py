"""Consensus and diversity of a question's responses, against enumeration and closed forms."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import pytest

from tempo_megatron.metrics.consensus import cons_at_k
from tempo_megatron.metrics.diversity import answer_entropy, distinct_answers, distinct_ngrams

CASES = {
    "one answer": [0, 0, 0, 0, 0, 0],
    "a majority": [0, 0, 0, 1, 1, 2],
    "ties of two": [0, 0, 0, 1, 1, 1],
    "ties of three": [0, 0, 1, 1, 2, 2],
    "all different": [0, 1, 2, 3, 4, 5],
    "few answers": [0, None, None, 1, None, 1],
    "one answers": [None, 3, None, None, None, None],
    "none answers": [None] * 6,
    "uneven": [0, 0, 0, 0, 1, 1, 2, 2, 3, None],
}


def won(votes: Counter[int | None], right: int | None) -> float:
    """Share of the win of the right cluster, written from the definition."""
    votes.pop(None, None)
    best = [cluster for cluster, count in votes.items() if count == max(votes.values())]
    return (right in best) / len(best) if best else 0.0


@pytest.mark.parametrize("clusters", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("right", [0, 1, 3])
def test_cons_at_k_is_the_expectation_over_all_subsets(clusters: list[int | None], right: int) -> None:
    """The generating function against every way to choose k responses; ties share, the answerless never win."""
    correct = [float(cluster == right) for cluster in clusters]
    for k in range(1, len(clusters) + 1):
        subsets = list(combinations(clusters, k))
        expected = sum(won(Counter(subset), right) for subset in subsets) / len(subsets)
        assert cons_at_k(correct, clusters, k) == pytest.approx(expected, abs=1e-12)


def test_cons_of_many_samples_is_a_probability() -> None:
    """Large binomials neither overflow nor lose the sum: a cluster that wins for certain has 1."""
    clusters = [0] * 200 + [1] * 30 + [2] * 26
    assert cons_at_k([1.0] * 256, clusters, 128) == pytest.approx(1.0, abs=1e-9)
    assert cons_at_k([1.0] * 200 + [0.0] * 56, clusters, 128) == pytest.approx(1.0, abs=1e-9)


def test_grades_that_differ_within_a_cluster_are_averaged() -> None:
    """A grader that timed out on one of four equal answers costs a quarter, not all."""
    assert cons_at_k([1.0, 0.0, 1.0, 1.0], [7, 7, 7, 7], 3) == pytest.approx(0.75)


def test_distinct_answers_and_entropy_have_their_closed_forms() -> None:
    """m answers equally often: m of n distinct, entropy log m; the answerless count as responses, not as answers."""
    assert distinct_answers([0, 0, 1, 1]) == 0.5
    assert answer_entropy([0, 0, 1, 1]) == pytest.approx(math.log(2))
    assert answer_entropy([0, 1, 2, 3, 4]) == pytest.approx(math.log(5))
    assert answer_entropy([0, 0, 0, 1]) == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))
    assert (distinct_answers([0, None, None, None]), answer_entropy([0, None, None, None])) == (0.25, 0.0)
    assert (distinct_answers([None, None]), answer_entropy([None, None])) == (0.0, 0.0)


def test_distinct_ngrams_are_of_words_and_do_not_cross_responses() -> None:
    """`a b a b` has the bigrams ab, ba, ab; a second response repeats one and adds one."""
    assert distinct_ngrams(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_ngrams(["a b a b", "a b\n c"], 2) == pytest.approx(3 / 5)
    assert distinct_ngrams(["a b", "b a"], 1) == pytest.approx(2 / 4)
    assert distinct_ngrams(["a b", "c"], 3) is None
