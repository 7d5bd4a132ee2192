"""The evidence lower bound (ELBO) that TEMPO's two steps raise, estimated from rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

_MINIMUM_PROBABILITY = 1e-3
"""Smaller probabilities count as this one, because a logarithm needs a floor."""


def evidence_terms(probabilities: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns the means over questions of the ELBO at the E-step's q, and of its two terms, in nats.

    `probabilities`: for each question, the critic's probability that each of n sampled responses is right. The E-step's
    q(y|x) is proportional to pi(y|x) V(x, y). Over n samples of pi it weights response i by w_i = V_i / sum V. Then

        bound = E_q[log V] - KL(q || pi) = sum_i w_i log V_i - sum_i w_i log(n w_i) = log mean_i V_i,

    which estimates log P(correct | x). Both terms are reported: the bound rises when answers get better, and also when
    q moves closer to the policy.
    """
    correctness, divergence, bound = 0.0, 0.0, 0.0
    for row in probabilities:
        values = [max(probability, _MINIMUM_PROBABILITY) for probability in row]
        total = sum(values)
        weights = [value / total for value in values]
        correctness += sum(weight * math.log(value) for weight, value in zip(weights, values, strict=True))
        divergence += sum(weight * math.log(len(row) * weight) for weight in weights)
        bound += math.log(total / len(row))
    count = len(probabilities)
    return {
        "bound": bound / count,
        "expected_log_correctness": correctness / count,
        "divergence_from_policy": divergence / count,
    }
