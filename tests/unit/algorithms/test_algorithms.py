"""Rewards and advantages against closed forms, enumeration, and numbers computed by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import (
    generalized_advantage_estimation,
    group_relative_advantages,
    value_baseline_advantages,
    whiten,
)
from tempo_megatron.algorithms.experience import (
    correctness_to_values,
    count_votes,
    last_value,
    values_to_correctness,
)
from tempo_megatron.algorithms.value_loss import calibration_mask, return_targets, squared_error

VALUES = torch.tensor([[9.0, 0.25, 0.5, 0.75, 7.0], [9.0, 9.0, 0.1, 0.3, 0.6]])
MASK = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()


def test_the_last_value_is_read_after_the_last_response_token() -> None:
    """Fails if it is read one position early, as in the authors' code, or late."""
    assert last_value(VALUES, MASK).tolist() == pytest.approx([0.75, 0.6])


@pytest.mark.parametrize(("wrong", "half"), [(0.0, 0.5), (-1.0, 0.0)])
def test_the_scale_of_targets_runs_from_wrong_to_one(wrong: float, half: float) -> None:
    """Wrong answers have the target `wrong`, right ones 1; figures are in the scale of correctness, whatever the
    targets."""
    correct = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    values = correctness_to_values(correct, wrong)
    assert values.tolist() == [wrong, half, 1.0]
    assert values_to_correctness(values, wrong).tolist() == correct.tolist()


def test_the_default_baseline_has_not_seen_the_token() -> None:
    """A_t = R - V(x, y_<t); the first token's baseline is V(x)."""
    advantages = value_baseline_advantages(torch.tensor([0.75, 0.6]), VALUES, MASK)
    expected = torch.tensor([[0, 0, 0.75 - 0.25, 0.75 - 0.5, 0], [0, 0, 0, 0.6 - 0.1, 0.6 - 0.3]])
    torch.testing.assert_close(advantages, expected)


def test_the_literal_baseline_is_the_value_after_the_token() -> None:
    """A_t = R - V(x, y_1..t); with the critic's reward the last token's advantage is then always 0."""
    advantages = value_baseline_advantages(torch.tensor([0.75, 0.6]), VALUES, MASK, "after_token")
    torch.testing.assert_close(advantages, torch.tensor([[0, 0, 0.25, 0, 0], [0, 0, 0, 0.3, 0]]))


def test_whitening_gives_mean_0_and_variance_1_over_response_tokens_alone() -> None:
    """Neither mean nor variance includes padding."""
    advantages = torch.randn(6, 9) * 3 + 5
    mask = torch.rand(6, 9) < 0.5
    whitened = whiten(advantages, mask)[mask]
    assert whitened.mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert whiten(advantages, mask)[~mask].abs().sum() == 0


def exact_gradients(baseline: str) -> tuple[Tensor, Tensor]:
    """Returns the gradient of E[R] and the expected policy gradient with a baseline, by enumerating two tokens."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([[0.9, 0.2], [0.1, 0.6]], dtype=torch.float64)
    p_first, p_second = first.softmax(0), second.softmax(1)
    true = torch.autograd.grad((p_first[:, None] * p_second * correct).sum(), (first, second), retain_graph=True)
    after_first = (p_second * correct).sum(1).detach()
    at_start = (p_first.detach() * after_first).sum()
    surrogate = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.product(range(2), range(2)):
        values = torch.stack([at_start, after_first[a], correct[a, b]])[None]
        mask = torch.tensor([[False, True, True]])
        advantages = value_baseline_advantages(last_value(values, mask), values, mask, baseline)
        probability = (p_first[a] * p_second[a, b]).detach()
        log_probs = torch.stack([p_first[a].log(), p_second[a, b].log()])
        surrogate = surrogate + probability * (advantages[0, 1:] * log_probs).sum()
    estimated = torch.autograd.grad(surrogate, (first, second))
    return torch.cat([g.flatten() for g in true]), torch.cat([g.flatten() for g in estimated])


def test_the_default_advantage_is_unbiased_and_the_literal_one_is_not() -> None:
    """Enumerates all sequences with an exact critic."""
    true, estimated = exact_gradients("before_token")
    torch.testing.assert_close(estimated, true)
    true, estimated = exact_gradients("after_token")
    assert (estimated - true).abs().max() > 0.01


def test_generalized_advantages_equal_the_sum_of_discounted_errors() -> None:
    """A_t = sum_l (gamma * gae_lambda)^l delta_(t+l), row by row in float64, for different lengths and offsets."""
    torch.manual_seed(1)
    values, rewards = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    mask = torch.zeros(5, 9, dtype=torch.bool)
    spans = [(1, 9), (3, 7), (2, 3), (4, 9), (1, 5)]
    for row, (start, end) in enumerate(spans):
        mask[row, start:end] = True
    advantages = generalized_advantage_estimation(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    for row, (start, end) in enumerate(spans):
        states = [float(values[row, t - 1]) for t in range(start, end)]
        next_states = [*states[1:], 0.0]
        token_rewards = [0.0] * (len(states) - 1) + [float(rewards[row])]
        deltas = [r + 0.9 * n - s for r, n, s in zip(token_rewards, next_states, states, strict=True)]
        expected = [
            sum((0.9 * 0.7) ** later * delta for later, delta in enumerate(deltas[t:])) for t in range(len(deltas))
        ]
        assert advantages[row, start:end].tolist() == pytest.approx(expected)
    assert advantages[~mask].abs().sum() == 0


def test_without_discount_generalized_advantages_are_the_reward_minus_the_value() -> None:
    """In this limit PPO's critic learns the same targets as TEMPO's."""
    rewards = torch.tensor([1.0, 0.0])
    advantages = generalized_advantage_estimation(rewards, VALUES, MASK, gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(advantages, value_baseline_advantages(rewards, VALUES, MASK))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_advantages_within_a_group_compare_a_prompt_s_responses_alone(dtype: torch.dtype) -> None:
    """Groups need not be contiguous. A group of one, or of equal rewards, has advantage 0. Advantages have the dtype
    of the rewards."""
    rewards = torch.tensor([1.0, 5.0, 0.0, 7.0, 7.0, 1.0], dtype=dtype)
    groups = torch.tensor([4, 9, 4, 2, 2, 4])
    mask = torch.ones(6, 2).bool()
    mask[5, 1] = False
    advantages = group_relative_advantages(rewards, groups, mask)
    high, low = (1 / 3) / math.sqrt(1 / 3), (-2 / 3) / math.sqrt(1 / 3)
    assert advantages[:, 0].tolist() == pytest.approx([high, 0, low, 0, 0, high], rel=1e-5)
    assert advantages.dtype is dtype
    assert advantages[5, 1] == 0


@pytest.mark.parametrize("size", range(2, 65))
def test_rewards_that_are_equal_up_to_rounding_have_advantage_0(size: int) -> None:
    """EMPO's reward for n different answers is 1 / n, and the mean of n of these is rounded. A deviation of 1e-8 would
    become an advantage that Adam scales to full steps."""
    groups, mask = torch.zeros(size, dtype=torch.int64), torch.ones(size, 3).bool()
    rewards = torch.ones(size) / size
    assert group_relative_advantages(rewards, groups, mask).abs().max() == 0
    rounded = rewards.clone()
    rounded[::2] = rewards[::2].nextafter(torch.tensor(1.0))
    assert group_relative_advantages(rounded, groups, mask).abs().max() == 0
    assert whiten(rounded[:, None].expand(size, 3), mask).abs().max() == 0
    assert group_relative_advantages(rewards * torch.linspace(1, 1.01, size), groups, mask).abs().max() > 0.1


def test_a_value_that_is_not_finite_affects_its_own_row_alone() -> None:
    """A NaN in another response, or outside the response tokens, must not prevent the updates of the batch."""
    rewards, groups = torch.tensor([1.0, float("nan"), 0.0, 1.0]), torch.zeros(4, dtype=torch.int64)
    mask = torch.tensor([[False, True, True]] * 4)
    advantages = group_relative_advantages(rewards, groups, mask)
    assert advantages[1, 1:].isnan().all() and advantages[1, 0] == 0
    expected = group_relative_advantages(rewards[[0, 2, 3]], groups[:3], mask[:3])
    torch.testing.assert_close(advantages[[0, 2, 3]], expected)

    advantages = torch.tensor([[0.0, 1.0, 2.0], [0.0, float("nan"), 4.0], [0.0, 3.0, 4.0]])
    whitened = whiten(advantages, mask[:3])
    assert whitened.isnan().sum() == 1 and whitened[1, 1].isnan()
    assert whitened[whitened.isfinite() & mask[:3]].mean().item() == pytest.approx(0, abs=1e-6)

    unread = torch.tensor([[float("nan"), 0.25, 0.5, float("nan")]])
    response = torch.tensor([[False, False, True, False]])
    for advantage in (
        value_baseline_advantages(torch.tensor([1.0]), unread, response),
        generalized_advantage_estimation(torch.tensor([1.0]), unread, response, gamma=1.0, gae_lambda=1.0),
    ):
        assert advantage.tolist() == [[0.0, 0.0, 0.75, 0.0]]


def test_votes_count_equivalent_answers_of_one_prompt() -> None:
    """A missing answer is never the majority, and of equally frequent answers the first one is."""
    clusters = torch.tensor([0, 1, 1, 2, 0, 1, 2, 3])
    prompts = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7])
    answered = torch.tensor([True, True, True, False, False, True, True, False])
    votes = count_votes(clusters, answered, prompts)
    assert votes.count.tolist() == [1, 2, 2, 1, 1, 1, 1, 1]
    assert votes.total.tolist() == [4] * 8
    assert votes.majority.tolist() == [False, True, True, False, False, True, False, False]
    assert votes.runner_up.tolist() == [1] * 8
    first, *_ = votes.answers.tolist()
    assert votes.answers[1] == votes.answers[2] != first and (votes.answers < 0).tolist() == (~answered).tolist()


def test_a_prompt_without_answers_has_no_majority() -> None:
    """TTRL must not reward a missing answer."""
    votes = count_votes(torch.tensor([0, 1]), torch.tensor([False, False]), torch.tensor([0, 0]))
    assert not votes.majority.any()
    assert votes.runner_up.tolist() == [0, 0] and votes.answers.tolist() == [-1, -1]


def test_the_critic_is_trained_at_the_last_prompt_token_too() -> None:
    """V(x) is the first token's baseline, so it needs training."""
    assert calibration_mask(MASK).tolist() == [[False, True, True, True, False], [False, False, True, True, True]]


def test_the_value_loss_is_the_square_at_masked_positions() -> None:
    """A closed form: padding and prompts count 0."""
    targets = torch.tensor([1.0, 0.0])[:, None].expand(2, 5)
    loss = squared_error(VALUES, targets, calibration_mask(MASK)).sum()
    assert loss.item() == pytest.approx(0.75**2 + 0.5**2 + 0.25**2 + 0.1**2 + 0.3**2 + 0.6**2)


def test_a_clipped_value_gains_nothing_beyond_the_clip() -> None:
    """Loss and gradient by the formula: the square inside the clip, outside it the larger of square and constant."""
    values = torch.tensor([[0.05, 0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    old, targets = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    error = squared_error(values, targets, torch.ones(1, 3).bool(), old, clip=0.1)
    error.sum().backward()
    assert error[0].tolist() == pytest.approx([0.95**2, 0.9**2, 1.5**2])
    assert values.grad is not None and values.grad[0].tolist() == pytest.approx([-2 * 0.95, 0.0, -2 * 1.5])


def test_returns_teach_the_value_of_the_state_before_their_token() -> None:
    """The return of token t is the target one position earlier. The target after the last token is the reward."""
    returns = torch.tensor([[0, 0, 0.3, 0.4, 0], [0, 0, 0, 0.5, 0.6]])
    targets = return_targets(returns, torch.tensor([1.0, -1.0]), MASK)
    torch.testing.assert_close(targets, torch.tensor([[0, 0.3, 0.4, 1.0, 0], [0, 0, 0.5, 0.6, -1.0]]))
