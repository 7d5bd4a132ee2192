"""What a mean per sequence does to a gradient where the length of a response depends on its first token.

One question; the first token is s or a, even chances. After s the response is over, and right half of the time. After
a the second token decides: right (40%) and over, or wrong and nine more tokens long. So s is the better branch: the
derivative of expected correctness by s's logit is p (1 - p) (0.5 - 0.4) = 0.025.
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
    """The derivative by s's logit of the objective on a batch of these responses, whose weights are unchanged."""
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
    """By enumeration, without sampling: the default baseline is unbiased under "constant" and, in a large batch,
    "tokens". Under "sequences" the wrong responses of the worse branch weigh least, and its gradient is positive."""
    assert slope(RESPONSES, "constant", ratio) * LONGEST == pytest.approx(0.025, rel=1e-12)
    assert slope(RESPONSES, "tokens", ratio) * MEAN_LENGTH == pytest.approx(0.025, rel=1e-12)
    by_hand = 0.5 * (0.5 * 0.05 - 0.5 * (0.4 * 0.55 / 2 - 0.6 * 0.45 / 10))
    assert slope(RESPONSES, "sequences", ratio) == pytest.approx(by_hand, rel=1e-12) == pytest.approx(-0.00825)


def expected(average_over: str, rows: int) -> float:
    """The mean slope over all batches of so many responses."""
    kinds = {"s": 0.5, "right": 0.2, "wrong": 0.3}
    of = dict(zip(kinds, (RESPONSES[0], RESPONSES[5], RESPONSES[7]), strict=True))
    return sum(
        math.prod(kinds[name] for name in batch) * slope([of[name] for name in batch], average_over, "sequence")
        for batch in itertools.product(kinds, repeat=rows)
    )


def test_a_mean_over_tokens_is_biased_in_a_small_batch_and_the_constant_in_none() -> None:
    """A batch's own number of tokens is of its actions, too: with one row it is the mean per sequence."""
    assert expected("tokens", 1) == pytest.approx(expected("sequences", 1)) == pytest.approx(-0.00825)
    assert expected("tokens", 1) < expected("tokens", 2) < expected("tokens", 4) < 0.025 / MEAN_LENGTH
    for rows in (1, 2, 4):
        assert expected("constant", rows) * LONGEST == pytest.approx(0.025)
