"""pass@k of one question."""

from __future__ import annotations

import math


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Returns the share of the k-subsets of `samples` responses, of which `correct` are right, that have a right one.

    1 - C(n - c, k) / C(n, k) is the unbiased estimate of arXiv 2107.03374, equation 1. Needs k <= samples.
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
