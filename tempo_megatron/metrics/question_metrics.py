"""The metrics of one question, and their means over questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tempo_megatron.metrics.consensus import Clusters, cons_at_k
from tempo_megatron.metrics.diversity import answer_entropy, distinct_answers, distinct_ngrams
from tempo_megatron.metrics.pass_at_k import pass_at_k

Metrics = dict[str, float]


@dataclass(frozen=True)
class Samples:
    """The responses to one question. Every field has one item per response."""

    correct: Sequence[float]
    clusters: Clusters
    texts: Sequence[str]
    tokens: Sequence[int]
    truncated: Sequence[bool]


def question_metrics(samples: Samples, *, average_at: int, k: Sequence[int], ngrams: Sequence[int]) -> Metrics:
    """Returns `avg@average_at`, `pass@k` and `cons@k` for each k, `length` (tokens), `truncated`, `distinct_answers`,
    `answer_entropy` (nats) and `distinct_Ngrams`, which is left out where no response has N words.

    The average is over all samples, whatever number its name has. It has the same expectation as an average of fewer
    samples, and less noise.
    """
    count = len(samples.correct)
    correct = round(sum(samples.correct))
    metrics = {f"avg@{average_at}": sum(samples.correct) / count}
    metrics |= {f"pass@{size}": pass_at_k(correct, count, size) for size in k}
    metrics |= {f"cons@{size}": cons_at_k(samples.correct, samples.clusters, size) for size in k}
    metrics |= {
        "length": sum(samples.tokens) / count,
        "truncated": sum(samples.truncated) / count,
        "distinct_answers": distinct_answers(samples.clusters),
        "answer_entropy": answer_entropy(samples.clusters),
    }
    shares = {f"distinct_{n}grams": distinct_ngrams(samples.texts, n) for n in ngrams}
    return metrics | {name: share for name, share in shares.items() if share is not None}


def values_by_metric(questions: Sequence[Metrics]) -> dict[str, list[float]]:
    """Returns, for each metric, its values over the questions that have it."""
    values: dict[str, list[float]] = {}
    for metrics in questions:
        for name, value in metrics.items():
            values.setdefault(name, []).append(value)
    return values


def mean_over_questions(questions: Sequence[Metrics]) -> Metrics:
    """Returns the mean of each metric over questions. Metrics with `@` in their name, the accuracies, also have a
    `_standard_error` over questions."""
    means: Metrics = {}
    for name, values in values_by_metric(questions).items():
        means[name] = mean(values)
        if "@" in name:
            means[f"{name}_standard_error"] = standard_error(values)
    return means


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def standard_error(numbers: Sequence[float]) -> float:
    """Returns the standard error of the mean; 0 for fewer than two numbers."""
    if len(numbers) < 2:
        return 0.0
    center = mean(numbers)
    return math.sqrt(sum((x - center) ** 2 for x in numbers) / (len(numbers) - 1) / len(numbers))
