"""Losses of the policy: values and gradients in float64 against direct implementations of the formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tempo_megatron.algorithms.policy_loss import (
    clipped_surrogate,
    entropy_bonus,
    kl_to_reference,
    loss_count,
    truncated_importance,
)

Row = dict[str, Any]


def batch() -> dict[str, Tensor]:
    """Returns rows with clips on both sides, both signs of advantage, different lengths, and one empty mask."""
    torch.manual_seed(3)
    old = -torch.rand(10, 6, dtype=torch.float64)
    new = old + torch.linspace(-0.6, 0.6, 10, dtype=torch.float64)[:, None] + 0.2 * torch.randn(10, 6).double()
    mask = torch.rand(10, 6) < 0.6
    mask[2] = False
    return {
        "log_probs": new.requires_grad_(),
        "old_log_probs": old,
        "advantages": torch.randn(10, 6, dtype=torch.float64),
        "mask": mask,
    }


def reference(
    data: dict[str, Tensor],
    *,
    ratio: str,
    clip_range_low: float,
    clip_range_high: float,
    dual_clip: float = 0.0,
    average_over: str = "sequences",
    importance: Tensor | None = None,
) -> tuple[float, Tensor]:
    """Returns the loss and its gradient by token: dL/dlogp_t = -w r A without a clip, 0 with one."""
    total, gradient = 0.0, torch.zeros_like(data["old_log_probs"])
    for row in range(len(data["mask"])):
        columns = data["mask"][row].nonzero()[:, 0].tolist()
        for t in columns:
            differences = (data["log_probs"].detach() - data["old_log_probs"])[row, columns].tolist()
            r = math.exp(sum(differences) / len(differences) if ratio == "sequence" else differences[columns.index(t)])
            a = float(data["advantages"][row, t])
            weight = 1 / len(columns) if average_over == "sequences" else 1.0
            weight *= 1.0 if importance is None else float(importance[row, t])
            objective, slope = r * a, r * a
            if (a > 0 and r > 1 + clip_range_high) or (a < 0 and r < 1 - clip_range_low):
                objective, slope = (1 + clip_range_high if a > 0 else 1 - clip_range_low) * a, 0.0
            if dual_clip and a < 0 and objective < dual_clip * a:
                objective, slope = dual_clip * a, 0.0
            total -= weight * objective
            gradient[row, t] = -weight * slope
    return total, gradient


@pytest.mark.parametrize("average_over", ["sequences", "tokens", "constant"])
@pytest.mark.parametrize("ratio", ["sequence", "token"])
@pytest.mark.parametrize("dual_clip", [0.0, 1.3])
def test_the_surrogate_equals_its_formula(ratio: str, average_over: str, dual_clip: float) -> None:
    """GSPO and PPO, each token with its own credit, with and without a dual clip that is active in some rows."""
    data = batch()
    weights = truncated_importance(data["old_log_probs"], -torch.rand(10, 6).double(), data["mask"], cap=1.2)
    for importance in (None, weights):
        options: Row = {
            "ratio": ratio,
            "clip_range_low": 0.1,
            "clip_range_high": 0.15,
            "dual_clip": dual_clip,
            "average_over": average_over,
            "importance": importance,
        }
        data["log_probs"].grad = None
        loss = clipped_surrogate(**data, **options)
        loss.total.backward()
        total, gradient = reference(data, **options)
        assert loss.total.item() == pytest.approx(total, rel=1e-12)
        assert data["log_probs"].grad is not None
        torch.testing.assert_close(data["log_probs"].grad, gradient)
        assert loss.ratio[2] == 1 and loss.clipped[2] == 0
        assert 0 < loss.clipped.mean() < 1


def test_a_loss_is_divided_by_one_count() -> None:
    """The count is the rows that learn, the tokens that learn, or the rows that learn times the longest response. A row
    without a token that learns is never counted."""
    mask = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])
    assert [loss_count(mask, over, 16) for over in ("sequences", "tokens", "constant")] == [2, 3, 32]


def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage_with_a_large_ratio() -> None:
    """Without it the loss of one token is unbounded in its ratio."""
    mask = torch.ones(1, 1).bool()
    inputs = (torch.tensor([[3.0]]), torch.zeros(1, 1), -torch.ones(1, 1), mask)
    free = clipped_surrogate(*inputs, ratio="token", clip_range_low=0.2, clip_range_high=0.2)
    bounded = clipped_surrogate(*inputs, ratio="token", clip_range_low=0.2, clip_range_high=0.2, dual_clip=3.0)
    assert free.total.item() == pytest.approx(math.exp(3)) and bounded.total.item() == pytest.approx(3.0)


@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_unchanged_weights_have_ratios_of_exactly_1(ratio: str) -> None:
    """In the first mini-batch of an iteration nothing is clipped."""
    old = -torch.rand(4, 5)
    mask = torch.ones(4, 5).bool()
    loss = clipped_surrogate(
        old.clone(), old, torch.randn(4, 5), mask, ratio=ratio, clip_range_low=0.1, clip_range_high=0.1
    )
    assert loss.ratio.tolist() == [1.0] * 4 and loss.clipped.sum() == 0


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    """The weight is p_trainer / p_generator up to the cap, so that a token with p_generator near 0 cannot dominate."""
    old = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    generated = torch.tensor([[0.5, -0.5, -9.0]])
    weights = truncated_importance(old, generated, torch.tensor([[True, True, True]]), cap=2.0)
    assert weights[0].tolist() == pytest.approx([math.exp(-0.5), math.exp(0.5), 2.0])
    assert not weights.requires_grad


@pytest.mark.parametrize("average_over", ["sequences", "tokens", "constant"])
def test_the_kl_penalty_equals_its_formula(average_over: str) -> None:
    """r - 1 - log r with r = p_reference / p, and the gradient (1 - r) / weight, in float64."""
    data = batch()
    kl = kl_to_reference(data["log_probs"], data["old_log_probs"], data["mask"], average_over)
    kl.sum().backward()
    r = (data["old_log_probs"] - data["log_probs"].detach()).exp()
    per_row = data["mask"].sum(1, keepdim=True).clamp_min(1) if average_over == "sequences" else 1
    torch.testing.assert_close(kl.detach(), (((r - 1 - r.log()) * data["mask"]) / per_row).sum(1))
    assert data["log_probs"].grad is not None
    torch.testing.assert_close(data["log_probs"].grad, (1 - r) * data["mask"] / per_row)


def test_the_kl_estimate_is_unbiased() -> None:
    """Its mean under the policy is the KL divergence, by enumeration of a distribution."""
    policy, other = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    estimates = kl_to_reference(policy.log()[:, None], other.log()[:, None], torch.ones(3, 1).bool(), "tokens")
    exact = float((policy * (policy / other).log()).sum())
    assert float((policy * estimates).sum()) == pytest.approx(exact)


def test_the_entropy_bonus_averages_as_the_loss_does() -> None:
    """It is a sum over rows of means over tokens, or a sum over tokens. Entries outside the mask count 0."""
    entropy = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert entropy_bonus(entropy, mask, "sequences").item() == pytest.approx(2 + 5)
    assert entropy_bonus(entropy, mask, "tokens").item() == pytest.approx(9)
