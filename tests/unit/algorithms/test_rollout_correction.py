"""Corrections of the generator's policy, in float64: brute force, enumerations, and the composition with GSPO."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tempo_megatron.algorithms.policy_loss import clipped_surrogate, loss_count
from tempo_megatron.algorithms.rollout_correction import correction_metrics, rollout_correction

WEIGHTS = ("none", "token", "sequence", "geometric_mean")
REJECTIONS = ("none", "token", "any_token", "sequence", "geometric_mean")
BOUNDS = ((0.6, 0.0), (0.0, 1.6), (0.6, 1.6))


def log_probs() -> tuple[Tensor, Tensor, Tensor]:
    """Returns the trainer's and the generator's log-probs, and a mask with an empty row and a row of one token."""
    torch.manual_seed(1)
    old = -torch.rand(12, 7, dtype=torch.float64)
    generator = old + 0.4 * torch.randn(12, 7).double() + torch.linspace(-0.7, 0.7, 12).double()[:, None]
    mask = torch.rand(12, 7) < 0.6
    mask[3], mask[5] = False, torch.arange(7) == 2
    return old, generator, mask


def ratio(kind: str, ratios: list[float], position: int) -> float:
    """Returns the ratio of this kind at a token of a response with these token ratios."""
    product = math.prod(ratios)
    return {"token": ratios[position], "sequence": product, "geometric_mean": product ** (1 / len(ratios))}[kind]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("reject", REJECTIONS)
@pytest.mark.parametrize(
    ("weight", "cap"), [("none", 0.0), *((weight, cap) for weight in WEIGHTS[1:] for cap in (0.0, 1.3))]
)
def test_weights_and_rejections_equal_their_formulas(
    weight: str, cap: float, reject: str, bounds: tuple[float, float]
) -> None:
    """Each kind of weight with each kind of rejection, token by token, from products of ratios instead of sums of
    logarithms. Padding and prompts have weight 1, and are not rejected."""
    old, generator, mask = log_probs()
    below, above = bounds
    correction = rollout_correction(
        old, generator, mask, weight=weight, cap=cap, reject=reject, reject_below=below, reject_above=above
    )
    expected_weights, expected_rejected = torch.ones_like(old), torch.zeros_like(mask)
    for row in range(len(mask)):
        columns = mask[row].nonzero()[:, 0].tolist()
        ratios = [float(old[row, t].exp() / generator[row, t].exp()) for t in columns]
        for position, t in enumerate(columns):
            judged = {"none": [1.0], "any_token": ratios}.get(reject) or [ratio(reject, ratios, position)]
            is_outside = any(r < below or (above and r > above) for r in judged)
            value = 1.0 if weight == "none" else ratio(weight, ratios, position)
            expected_weights[row, t] = 0.0 if is_outside else min(value, cap or math.inf)
            expected_rejected[row, t] = is_outside
    torch.testing.assert_close(correction.weights, expected_weights, rtol=1e-12, atol=0)
    assert torch.equal(correction.rejected, expected_rejected)
    assert bool(correction.rejected.any()) == (reject != "none") and not correction.rejected[mask].all()


def test_token_weights_are_truncated_and_carry_no_gradient() -> None:
    """The weight is p_trainer / p_generator up to the cap, so that a token with p_generator near 0 cannot dominate."""
    old = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    generator = torch.tensor([[0.5, -0.5, -9.0]])
    correction = rollout_correction(old, generator, torch.ones(1, 3).bool(), weight="token", cap=2.0)
    assert correction.weights[0].tolist() == pytest.approx([math.exp(-0.5), math.exp(0.5), 2.0])
    assert not correction.weights.requires_grad and not correction.rejected.any()


def test_icepop_keeps_the_ratio_inside_its_bounds_and_drops_the_token_outside() -> None:
    """M(k) = k for k in [alpha, beta], else 0 (arXiv 2510.18855), bounds included. An infinite ratio has weight 0 and
    makes no NaN, and the largest ratio in the log stays finite."""
    ratios = torch.tensor([[0.25, 0.5, 1.0, 4.0, 8.0]])
    mask = torch.ones(1, 5).bool()
    options: dict[str, Any] = {"weight": "token", "reject": "token", "reject_below": 0.5, "reject_above": 4.0}
    correction = rollout_correction(ratios.log(), torch.zeros(1, 5), mask, **options)
    assert correction.weights.tolist() == [[0.0, 0.5, 1.0, 4.0, 0.0]]
    correction = rollout_correction(torch.zeros(1, 5), torch.full((1, 5), -1e3), mask, **options)
    assert correction.weights.tolist() == [[0.0] * 5]
    assert correction.largest_ratios == {"token": torch.finfo(torch.float64).max}


LEARNER = ((0.7, 0.3), (0.2, 0.8), (0.5, 0.5), (0.9, 0.1), (0.4, 0.6), (0.35, 0.65), (0.8, 0.2))
EARLIER = ((0.5, 0.5), (0.6, 0.4), (0.3, 0.7), (0.5, 0.5), (0.5, 0.5), (0.7, 0.3), (0.6, 0.4))
LATER = ((0.6, 0.4), (0.3, 0.7), (0.45, 0.55), (0.8, 0.2), (0.45, 0.55), (0.4, 0.6), (0.75, 0.25))
"""The probabilities of both tokens after each prefix of up to two tokens: (), 0, 1, 00, 01, 10, 11."""


def enumerated(behavior: Any) -> tuple[Tensor, Tensor]:
    """Returns the log-probs of all responses of three tokens [8, 3]: the learner's, and those of the policy that
    `behavior(prefix)` names for the next token."""
    tables = {"learner": LEARNER, "earlier": EARLIER, "later": LATER}
    logs: dict[str, list[list[float]]] = {"learner": [], "behavior": []}
    for response in itertools.product((0, 1), repeat=3):
        prefixes = [response[:t] for t in range(3)]
        states = [2 ** len(p) - 1 + sum(token << (len(p) - 1 - i) for i, token in enumerate(p)) for p in prefixes]
        for name, policies in (("learner", ["learner"] * 3), ("behavior", [behavior(p) for p in prefixes])):
            probabilities = [tables[policy][s][y] for policy, s, y in zip(policies, states, response, strict=True)]
            logs[name].append([math.log(p) for p in probabilities])
    return torch.tensor(logs["learner"]).double(), torch.tensor(logs["behavior"]).double()


@pytest.mark.parametrize(
    "behavior",
    [
        lambda prefix: "earlier",
        lambda prefix: "earlier" if len(prefix) < 2 else "later",
        lambda prefix: "earlier" if sum(prefix) == 0 else "later",
    ],
    ids=["one policy", "another from the third token on", "another from the first 1 on"],
)
def test_the_sequence_weight_is_unbiased_and_the_others_are_not(behavior: Any) -> None:
    """For any function f of responses, sum_y p_generator(y) P(y) f(y) = sum_y p_old(y) f(y). It holds for a response of
    several policies too, also if its prefix decides where they change. Token weights and geometric means differ."""
    old, generator = enumerated(behavior)
    mask = torch.ones(8, 3).bool()
    learner, sampled = old.sum(1).exp(), generator.sum(1).exp()
    torch.testing.assert_close(sampled.sum(), torch.ones((), dtype=torch.float64))
    f = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.0, 1.5, -0.7, 4.0]).double()
    exact = float((learner * f).sum())
    estimates = {
        kind: float((sampled * rollout_correction(old, generator, mask, weight=kind).weights[:, -1] * f).sum())
        for kind in WEIGHTS
    }
    assert estimates["sequence"] == pytest.approx(exact, rel=1e-12)
    assert all(abs(estimates[kind] - exact) > 1e-3 for kind in ("none", "token", "geometric_mean"))


def test_the_geometric_mean_times_gspos_ratio_is_gspos_ratio_to_the_generator() -> None:
    """It is exp(mean_t log(p / p_generator)) over tokens of any policies. The clip bounds the update alone."""
    old, generator, mask = log_probs()
    new = (old + 0.02 * torch.randn(12, 7).double()).requires_grad_()
    correction = rollout_correction(old, generator, mask, weight="geometric_mean")
    advantages = torch.randn(12, 7, dtype=torch.float64)
    options: dict[str, Any] = {"ratio": "sequence", "clip_range_low": 9.0, "clip_range_high": 9.0}
    loss = clipped_surrogate(
        new, old, advantages, mask, **options, average_over="tokens", importance=correction.weights
    )
    direct = (torch.where(mask, new - generator, 0.0).sum(1) / mask.sum(1).clamp_min(1)).exp()
    torch.testing.assert_close(loss.total, -(direct[:, None] * advantages)[mask].sum())
    (gradient,) = torch.autograd.grad(loss.total, new)
    torch.testing.assert_close(gradient, torch.where(mask, -direct.detach()[:, None] * advantages, 0.0))


@pytest.mark.parametrize("average_over", ["sequences", "tokens", "constant"])
@pytest.mark.parametrize("loss_ratio", ["sequence", "token"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_division_of_rows_changes_no_gradient(weight: str, loss_ratio: str, average_over: str) -> None:
    """Micro-batches are any groups of rows, each padded to its own width. Their losses, over the count of the whole
    batch, have its gradient. A mean over what each group keeps would not."""
    old, generator, mask = log_probs()
    new = (old + 0.1 * torch.randn(12, 7).double()).requires_grad_()
    advantages = torch.randn(12, 7, dtype=torch.float64)
    correction = rollout_correction(
        old, generator, mask, weight=weight, cap=1.2 if weight != "none" else 0.0, reject="any_token", reject_below=0.6
    )
    assert 0 < int(correction.rejected.any(1).sum()) < int(mask.any(1).sum())

    def gradient(groups: list[Tensor]) -> Tensor:
        count = loss_count(mask, average_over, 7)
        total = torch.zeros((), dtype=torch.float64)
        for rows in groups:
            width = int(mask[rows].nonzero()[:, 1].max()) + 1 if mask[rows].any() else 1
            columns = (new, old, advantages, mask, correction.weights, correction.rejected)
            *inputs, importance, rejected = [column[rows][:, :width] for column in columns]
            options: dict[str, Any] = {"ratio": loss_ratio, "average_over": average_over, "importance": importance}
            loss = clipped_surrogate(*inputs, clip_range_low=0.1, clip_range_high=0.15, rejected=rejected, **options)
            total = total + loss.total / count
        return torch.autograd.grad(total, new)[0]

    whole = gradient([torch.arange(12)])
    assert whole.norm() > 0
    for groups in (list(torch.arange(12).split(5)), [torch.tensor([row]) for row in range(12)]):
        torch.testing.assert_close(gradient(groups), whole, rtol=1e-12, atol=1e-15)


def test_the_metrics_of_a_correction() -> None:
    """Shares of tokens, and of responses that are left out whole; the mean weight counts rejected tokens as 0; rows
    without a token count nowhere."""
    ratios = torch.tensor([[2.0, 0.5, 9.0], [4.0, 4.0, 9.0], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]).double()
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    correction = rollout_correction(
        ratios.log(), torch.zeros(4, 3).double(), mask, weight="token", reject="sequence", reject_above=3.0
    )
    assert correction_metrics(correction, mask) == pytest.approx(
        {
            "rejected_tokens": 2 / 7,
            "rejected_sequences": 1 / 3,
            "importance_weight_mean": 5.5 / 7,
            "token_ratio_max": 4.0,
            "sequence_ratio_max": 16.0,
        }
    )
    nothing = torch.zeros(4, 3).bool()
    correction = rollout_correction(ratios.log(), ratios.log(), nothing, reject="any_token", reject_above=3.0)
    assert set(correction_metrics(correction, nothing).values()) == {0.0}
