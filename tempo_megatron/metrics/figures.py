"""The figures of a question and their means over questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tempo_megatron.metrics.consensus import Clusters, cons_at_k
from tempo_megatron.metrics.diversity import answer_entropy, distinct_answers, distinct_ngrams
from tempo_megatron.metrics.pass_at_k import pass_at_k

Figures = dict[str, float]


@dataclass(frozen=True)
class Samples:
    """The responses to one question, an item a response in every field."""

    correct: Sequence[float]
    clusters: Clusters
    texts: Sequence[str]
    tokens: Sequence[int]
    truncated: Sequence[bool]


def question_figures(samples: Samples, *, average_at: int, k: Sequence[int], ngrams: Sequence[int]) -> Figures:
    """`avg@average_at`, `pass@k` and `cons@k` of each k, `length` (tokens), `truncated`, `distinct_answers`,
    `answer_entropy` (nats) and `distinct_Ngrams`, which is left out where no response has N words.

    The average is over all samples, whatever number it is named after: its mean is the same as of fewer, with less
    noise.
    """
    count = len(samples.correct)
    right = round(sum(samples.correct))
    figures = {f"avg@{average_at}": sum(samples.correct) / count}
    figures |= {f"pass@{size}": pass_at_k(right, count, size) for size in k}
    figures |= {f"cons@{size}": cons_at_k(samples.correct, samples.clusters, size) for size in k}
    figures |= {
        "length": sum(samples.tokens) / count,
        "truncated": sum(samples.truncated) / count,
        "distinct_answers": distinct_answers(samples.clusters),
        "answer_entropy": answer_entropy(samples.clusters),
    }
    shares = {f"distinct_{n}grams": distinct_ngrams(samples.texts, n) for n in ngrams}
    return figures | {name: share for name, share in shares.items() if share is not None}


def by_figure(questions: Sequence[Figures]) -> dict[str, list[float]]:
    """Each figure's values over the questions that have it."""
    columns: dict[str, list[float]] = {}
    for figures in questions:
        for name, value in figures.items():
            columns.setdefault(name, []).append(value)
    return columns


def summarize(questions: Sequence[Figures]) -> Figures:
    """Mean of each figure over questions; accuracies also with their `_standard_error` over questions."""
    found: Figures = {}
    for name, values in by_figure(questions).items():
        found[name] = mean(values)
        if "@" in name:
            found[f"{name}_standard_error"] = standard_error(values)
    return found


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def standard_error(numbers: Sequence[float]) -> float:
    if len(numbers) < 2:
        return 0.0
    center = mean(numbers)
    return math.sqrt(sum((x - center) ** 2 for x in numbers) / (len(numbers) - 1) / len(numbers))
