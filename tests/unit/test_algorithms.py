"""The mathematics against closed forms, enumeration, and float64 references written from the formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import rewards_and_advantages, whiten
from tempo_megatron.algorithms.policy_loss import gspo
from tempo_megatron.algorithms.value_loss import calibration_mask, squared_error

VALUES = torch.tensor([[9.0, 0.25, 0.5, 0.75, 7.0], [9.0, 9.0, 0.1, 0.3, 0.6]])
MASK = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
NEVER = torch.tensor([False, False])


def test_the_reward_is_the_value_after_the_last_response_token() -> None:
    """Fails when R is read one position early, as in the authors' code."""
    rewards, _, _ = rewards_and_advantages(VALUES, MASK, NEVER)
    assert rewards.tolist() == pytest.approx([0.75, 0.6])


def test_the_default_baseline_has_not_seen_the_token() -> None:
    """A_t = R - V(x, y_<t); the first token's baseline is V(x)."""
    _, advantages, _ = rewards_and_advantages(VALUES, MASK, NEVER)
    expected = torch.tensor([[0, 0, 0.75 - 0.25, 0.75 - 0.5, 0], [0, 0, 0, 0.6 - 0.1, 0.6 - 0.3]])
    torch.testing.assert_close(advantages, expected)


def test_the_literal_baseline_is_the_value_after_the_token() -> None:
    """A_t = R - V(x, y_1..t); the last token's advantage is then always 0."""
    _, advantages, _ = rewards_and_advantages(VALUES, MASK, NEVER, baseline="after_token")
    torch.testing.assert_close(advantages, torch.tensor([[0, 0, 0.25, 0, 0], [0, 0, 0, 0.3, 0]]))


@pytest.mark.parametrize(("how", "reward", "learned"), [("value", 0.6, 4), ("wrong", 0.0, 4), ("mask", 0.6, 2)])
def test_a_truncated_response_is_rewarded_as_set(how: str, reward: float, learned: int) -> None:
    """Protects `policy.truncated`: only the truncated row is touched."""
    truncated = torch.tensor([False, True])
    rewards, _, mask = rewards_and_advantages(VALUES, MASK, truncated, truncated_reward=how)
    assert rewards.tolist() == pytest.approx([0.75, reward])
    assert mask.sum() == learned


def test_whitening_gives_mean_0_and_variance_1_over_response_tokens_alone() -> None:
    """Padding must count neither in the mean nor in the variance."""
    advantages = torch.randn(6, 9) * 3 + 5
    mask = torch.rand(6, 9) < 0.5
    chosen = whiten(advantages, mask)[mask]
    assert chosen.mean().item() == pytest.approx(0, abs=1e-6)
    assert chosen.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert whiten(advantages, mask)[~mask].abs().sum() == 0


def exact_gradients(baseline: str) -> tuple[Tensor, Tensor]:
    """A two-token problem, enumerated: the gradient of E[R] and the expected policy gradient with a baseline."""
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
        _, advantages, _ = rewards_and_advantages(values, mask, torch.tensor([False]), baseline=baseline)
        probability = (p_first[a] * p_second[a, b]).detach()
        log_probs = torch.stack([p_first[a].log(), p_second[a, b].log()])
        surrogate = surrogate + probability * (advantages[0, 1:] * log_probs).sum()
    estimated = torch.autograd.grad(surrogate, (first, second))
    return torch.cat([g.flatten() for g in true]), torch.cat([g.flatten() for g in estimated])


def test_the_default_advantage_is_unbiased_and_the_literal_one_is_not() -> None:
    """By enumeration of all sequences with a critic that is exact, no sampling."""
    true, estimated = exact_gradients("before_token")
    torch.testing.assert_close(estimated, true)
    true, estimated = exact_gradients("after_token")
    assert (estimated - true).abs().max() > 0.01


def reference_gspo(
    log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float
) -> tuple[float, Tensor]:
    """Loss and its gradient by the formula, row by row: dL/dlogp_t = -s A_t / T where the clip lets it through."""
    total, gradient = 0.0, torch.zeros_like(log_probs)
    for row in range(mask.shape[0]):
        columns = mask[row].nonzero()[:, 0].tolist()
        if not columns:
            continue
        s = math.exp(sum(float(log_probs[row, t] - old[row, t]) for t in columns) / len(columns))
        bounded = min(max(s, 1 - low), 1 + high)
        for t in columns:
            a = float(advantages[row, t])
            total -= min(s * a, bounded * a) / len(columns)
            if s * a <= bounded * a:
                gradient[row, t] = -s * a / len(columns)
    return total, gradient


def test_gspo_equals_its_formula_and_gives_every_token_its_own_credit() -> None:
    """Loss and gradient in float64, rows clipped on either side and one with nothing to learn among them."""
    torch.manual_seed(3)
    old = -torch.rand(8, 6, dtype=torch.float64)
    log_probs = (old + torch.linspace(-0.3, 0.3, 8, dtype=torch.float64)[:, None]).requires_grad_()
    advantages = torch.randn(8, 6, dtype=torch.float64)
    mask = torch.rand(8, 6) < 0.6
    mask[2] = False
    loss = gspo(log_probs, old, advantages, mask, clip_low=0.1, clip_high=0.15)
    loss.total.backward()
    total, gradient = reference_gspo(log_probs.detach(), old, advantages, mask, 0.1, 0.15)
    assert loss.total.item() == pytest.approx(total, rel=1e-12)
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, gradient)
    assert loss.ratio[2] == 1 and loss.clipped[2] == 0
    assert 0 < loss.clipped.mean() < 1


def test_gspo_of_unchanged_weights_has_ratios_of_exactly_1() -> None:
    """The first mini-batch of an iteration."""
    old = -torch.rand(4, 5)
    loss = gspo(old.clone(), old, torch.randn(4, 5), torch.ones(4, 5).bool(), clip_low=0.1, clip_high=0.1)
    assert loss.ratio.tolist() == [1.0] * 4 and loss.clipped.sum() == 0


def test_the_critic_is_trained_at_the_last_prompt_token_too() -> None:
    """V(x) is the first token's baseline, so it needs training."""
    assert calibration_mask(MASK).tolist() == [[False, True, True, True, False], [False, False, True, True, True]]


def test_the_value_loss_is_a_sum_over_masked_positions() -> None:
    """A closed form: padding and prompts count nothing."""
    loss = squared_error(VALUES, torch.tensor([1.0, 0.0]), calibration_mask(MASK))
    assert loss.item() == pytest.approx(0.75**2 + 0.5**2 + 0.25**2 + 0.1**2 + 0.3**2 + 0.6**2)
