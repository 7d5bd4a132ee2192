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
)
from tempo_megatron.algorithms.rollout_correction import rollout_correction

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
    correction = rollout_correction(
        data["old_log_probs"], -torch.rand(10, 6).double(), data["mask"], weight="token", cap=1.2
    )
    for importance in (None, correction.weights):
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


@pytest.mark.parametrize("average_over", ["sequences", "tokens", "constant"])
@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_a_rejected_token_adds_nothing_and_changes_no_other_token(ratio: str, average_over: str) -> None:
    """The gradient of surrogate, KL and entropy is that without the rejection, times 0 at rejected tokens: the average
    and GSPO's ratio count them. A token whose ratio overflows makes no NaN once it is rejected."""
    data = batch()
    rejected = data["mask"] & (torch.rand(10, 6) < 0.4)
    rejected[4] = data["mask"][4]
    assert rejected.any() and not rejected[data["mask"]].all()

    def gradients(rejected: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the gradient of all terms, and the sequence ratios."""
        data["log_probs"].grad = None
        options: Row = {"ratio": ratio, "clip_range_low": 0.1, "clip_range_high": 0.15, "average_over": average_over}
        loss = clipped_surrogate(**data, **options, rejected=rejected)
        kl = kl_to_reference(data["log_probs"], data["old_log_probs"] + 0.3, data["mask"], average_over, rejected)
        entropy = entropy_bonus(data["log_probs"].square(), data["mask"], average_over, rejected)
        (loss.total + kl.sum() + entropy).backward()
        assert data["log_probs"].grad is not None
        return data["log_probs"].grad.clone(), loss.ratio

    free, ratios = gradients(None)
    corrected, corrected_ratios = gradients(rejected)
    torch.testing.assert_close(corrected, free.masked_fill(rejected, 0.0), rtol=0, atol=0)
    assert free[rejected].abs().min() > 0 and torch.equal(ratios, corrected_ratios)

    if ratio == "token":
        row, column = rejected.nonzero()[0].tolist()
        with torch.no_grad():
            data["log_probs"][row, column] = 1e4
        assert gradients(rejected)[0].isfinite().all()


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
