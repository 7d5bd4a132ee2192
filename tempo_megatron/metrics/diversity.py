"""The diversity of the responses to one question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tempo_megatron.metrics.consensus import Clusters


def distinct_answers(clusters: Clusters) -> float:
    """Returns the number of different answers over the number of responses, in [0, 1]. A response without an answer
    adds none."""
    return len(set(clusters) - {None}) / len(clusters)


def answer_entropy(clusters: Clusters) -> float:
    """Returns the Shannon entropy, in nats, of the answers of the responses that have one; 0 where none has."""
    sizes = Counter(cluster for cluster in clusters if cluster is not None).values()
    total = sum(sizes)
    return sum(size / total * math.log(total / size) for size in sizes)


def distinct_ngrams(texts: Sequence[str], n: int) -> float | None:
    """Returns the number of different n-grams of words over the number of all n-grams, pooled over the texts
    (distinct-n, arXiv 1510.03055). No n-gram spans two texts. None where no text has n words."""
    distinct: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.split()
        ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
        distinct.update(ngrams)
        total += len(ngrams)
    return len(distinct) / total if total else None
