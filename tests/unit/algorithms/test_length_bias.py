"""The bias of a mean per sequence if the length of a response depends on its first token.

There is one question. The first token is s or a, with equal probability. After s the response ends and is right half of
the time. After a the second token decides: right (40%) and the end, or wrong and nine more tokens. So s is the better
branch, and the derivative of expected correctness by the logit of s is p (1 - p) (0.5 - 0.4) = 0.025.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tempo_megatron.algorithms.advantages import value_baseline_advantages
from tempo_megatron.algorithms.experience import last_value
from tempo_megatron.algorithms.policy_loss import clipped_surrogate, loss_count

LONGEST = 16
MEAN_LENGTH = 0.5 * 1 + 0.2 * 2 + 0.3 * 10
# Ten rows are the whole distribution: V(x), V(x, first token), V(x, first two tokens) of an exact critic.
RESPONSES = [("s", 1, [0.45, 0.5])] * 5 + [("a", 2, [0.45, 0.4, 1.0])] * 2 + [("a", 10, [0.45, 0.4, 0.0])] * 3


def slope(responses: list[tuple[str, int, list[float]]], average_over: str, ratio: str) -> float:
    """Returns the derivative of the objective by the logit of s, on these responses and before any update."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    rows, width = len(responses), 1 + max(length for _, length, _ in responses)
    mask = torch.tensor([[0 < t <= length for t in range(width)] for _, length, _ in responses])
    values = torch.zeros(rows, width, dtype=torch.float64)
    for row, (_, length, states) in enumerate(responses):
        read = states + states[-1:] * (length + 1 - len(states))
        values[row, : length + 1] = torch.tensor(read, dtype=torch.float64)
    first = logits.log_softmax(0)[torch.tensor([["s", "a"].index(token) for token, _, _ in responses])]
    log_probs = torch.cat([torch.zeros(rows, 1), first[:, None], torch.full((rows, width - 2), -0.7)], 1)
    loss = clipped_surrogate(
        log_probs,
        log_probs.detach(),
        value_baseline_advantages(last_value(values, mask), values, mask),
        mask,
        ratio=ratio,
        clip_range_low=3e-4,
        clip_range_high=5e-4,
        average_over=average_over,
    )
    (gradient,) = torch.autograd.grad(-loss.total / loss_count(mask, average_over, LONGEST), logits)
    return float(gradient[0])


@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_an_exact_critic_prefers_the_worse_branch_under_a_mean_per_sequence(ratio: str) -> None:
    """By enumeration, the default baseline is unbiased under "constant" and, in a large batch, under "tokens". Under
    "sequences" the wrong responses of the worse branch have the least weight, so that its gradient is positive."""
    assert slope(RESPONSES, "constant", ratio) * LONGEST == pytest.approx(0.025, rel=1e-12)
    assert slope(RESPONSES, "tokens", ratio) * MEAN_LENGTH == pytest.approx(0.025, rel=1e-12)
    by_hand = 0.5 * (0.5 * 0.05 - 0.5 * (0.4 * 0.55 / 2 - 0.6 * 0.45 / 10))
    assert slope(RESPONSES, "sequences", ratio) == pytest.approx(by_hand, rel=1e-12) == pytest.approx(-0.00825)


def expected(average_over: str, rows: int) -> float:
    """Returns the mean slope over all batches of this number of responses."""
    probabilities = {"s": 0.5, "right": 0.2, "wrong": 0.3}
    responses = dict(zip(probabilities, (RESPONSES[0], RESPONSES[5], RESPONSES[7]), strict=True))
    return sum(
        math.prod(probabilities[name] for name in batch)
        * slope([responses[name] for name in batch], average_over, "sequence")
        for batch in itertools.product(probabilities, repeat=rows)
    )


def test_a_mean_over_tokens_is_biased_in_a_small_batch_and_the_constant_in_none() -> None:
    """The number of tokens in a batch depends on its actions too. With one row it is the mean per sequence."""
    assert expected("tokens", 1) == pytest.approx(expected("sequences", 1)) == pytest.approx(-0.00825)
    assert expected("tokens", 1) < expected("tokens", 2) < expected("tokens", 4) < 0.025 / MEAN_LENGTH
    for rows in (1, 2, 4):
        assert expected("constant", rows) * LONGEST == pytest.approx(0.025)
