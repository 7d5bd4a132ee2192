"""The M-step around a policy that scores without a model: what its losses read, and what it logs of a correction."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tempo_megatron.algorithms.methods.grpo import Grpo
from tempo_megatron.config import (
    AverageOver,
    ImportanceWeight,
    PolicyConfig,
    Rejection,
    ReplayedRoutes,
    RolloutCorrectionConfig,
)
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.routes import MissingRoutes
from tempo_megatron.megatron.batch import Batch
from tempo_megatron.training.phases.advantages import AdvantageBatch, PolicyRollouts, compute_advantages
from tempo_megatron.training.phases.m_step import m_step

LOG_PROB = -1.0
"""The policy's log-prob of every token."""
GENERATOR_LOG_PROBS = ((-1.0, -1.0), (-1.5,), (-1.0, -1.0, -3.0), (-1.0,))
"""Of the responses to two prompts, in their order."""


class ScoringPolicy:
    """A policy whose steps compute the loss and its gradient by token, and count its forward passes."""

    def __init__(self) -> None:
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
        self.scored_rows = 0
        self.steps: list[tuple[Batch, torch.Tensor]] = []
        """The batch of each step, and its loss's gradient by the log-probs, [rows, sequence]."""

    def score(self, batch: Batch, score: Any) -> dict[str, torch.Tensor]:
        self.scored_rows += batch.rows
        columns = {"log_probs": torch.full(batch.tokens.shape, LOG_PROB), "entropy": torch.ones(batch.tokens.shape)}
        return {name: column * batch.response_mask for name, column in columns.items()}

    def step(self, batch: Batch, score: Any, loss: Any) -> tuple[dict[str, torch.Tensor], float]:
        log_probs = torch.full(batch.tokens.shape, LOG_PROB).requires_grad_()
        total, rows = loss({"log_probs": log_probs}, batch)
        (gradient,) = torch.autograd.grad(total, log_probs)
        self.steps.append((batch, gradient))
        return rows, float(gradient.norm())


def learned(
    correction: RolloutCorrectionConfig, mini_batches: int = 1
) -> tuple[ScoringPolicy, AdvantageBatch, dict[str, float]]:
    """Returns the policy after an M-step with this correction, what it learned from, and the metrics."""
    config = PolicyConfig(
        average_over=AverageOver.tokens, mini_batches=mini_batches, epochs=2, rollout_correction=correction
    )
    policy: Any = ScoringPolicy()
    prompts = [Prompt(name, (5, 6), "here", "exact", {"answer": "x"}) for name in "ab"]
    rollouts = [
        Rollout(prompts[index // 2], index % 2, (7,) * len(log_probs), log_probs, "stop")
        for index, log_probs in enumerate(GENERATOR_LOG_PROBS)
    ]
    step = PolicyRollouts(rollouts, [1.0, 0.0, 1.0, 0.0])

    def scores(*_: str) -> Any:
        return None

    batch = compute_advantages(step, Grpo(), policy, None, None, scores, config, wrong=0.0, seed=(3,))
    return policy, batch, m_step(policy, batch, scores, config, (3,), max_response_tokens=4)


def test_without_a_correction_the_loss_has_no_columns_of_one_and_logs_nothing() -> None:
    """The default: neither weights nor metrics, so results are those of a run that knows no correction."""
    _, batch, metrics = learned(RolloutCorrectionConfig())
    assert batch.correction is None and not {"importance", "rejected"} & set(batch.batch.columns)
    assert not any("ratio_max" in name or "rejected" in name for name in metrics if name != "policy/ratio_max")


def test_weights_of_the_generators_log_probs_reach_the_gradient() -> None:
    """Of each token, with the sign and size of its own ratio; the loss is divided by all seven tokens, of which three
    are rejected. Old log-probs are scored once a row."""
    correction = RolloutCorrectionConfig(ImportanceWeight.token, 1.2, Rejection.any_token, reject_above=2.0)
    policy, batch, metrics = learned(correction)
    free_policy, _, _ = learned(RolloutCorrectionConfig())
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.2, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert policy.scored_rows == free_policy.scored_rows == batch.batch.rows == 4
    for (mini_batch, gradient), (_, free_gradient) in zip(policy.steps, free_policy.steps, strict=True):
        torch.testing.assert_close(gradient, free_gradient * mini_batch.columns["importance"])
        assert (free_gradient[mini_batch.columns["rejected"]] != 0).all()
    torch.testing.assert_close(
        batch.batch.columns["importance"][batch.batch.columns["learn"]],
        torch.cat([row[: len(tokens)] for row, tokens in zip(weights, GENERATOR_LOG_PROBS, strict=True)]),
    )
    figures = {name: metrics[f"policy/{name}"] for name in ("rejected_tokens", "rejected_sequences", "token_ratio_max")}
    assert figures == pytest.approx(
        {"rejected_tokens": 3 / 7, "rejected_sequences": 1 / 4, "token_ratio_max": float(torch.tensor(2.0).exp())}
    )
    assert metrics["policy/importance_weight_mean"] == pytest.approx(4.2 / 7)


def test_a_mini_batch_whose_tokens_are_all_rejected_is_left_out() -> None:
    """A step on a gradient of zeros would still move weights by Adam's momentum."""
    policy, _, metrics = learned(RolloutCorrectionConfig(), mini_batches=4)
    assert len(policy.steps) == 8 and "policy/rejected_updates" not in metrics
    correction = RolloutCorrectionConfig(reject=Rejection.sequence, reject_above=1.5)
    policy, _, metrics = learned(correction, mini_batches=4)
    assert len(policy.steps) == 4 and metrics["policy/rejected_sequences"] == 2 / 4
    assert metrics["policy/rejected_updates"] == 4 and metrics["policy/skipped_updates"] == 0
    assert all("importance" not in mini_batch.columns for mini_batch, _ in policy.steps)


def test_the_first_rank_decides_which_mini_batches_make_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio that differs in its last bit between ranks may be rejected on one of them alone. If each decided by
    itself, one would wait for the other in the collectives of the update."""
    calls = []

    def decisions_of_first_rank(own: list[bool]) -> list[bool]:
        calls.append(own)
        return [not decision for decision in own]

    monkeypatch.setattr("tempo_megatron.training.phases.m_step.broadcast_from_first", decisions_of_first_rank)
    correction = RolloutCorrectionConfig(reject=Rejection.sequence, reject_above=1.5)
    policy, _, metrics = learned(correction, mini_batches=4)
    (own,) = calls
    assert len(own) == 8 and sum(own) == 4  # two epochs; two of four responses are rejected
    assert all(mini_batch.columns["rejected"].any() for mini_batch, _ in policy.steps)
    assert len(policy.steps) == 4 and metrics["policy/rejected_updates"] == 4


def test_a_policy_that_replays_routes_learns_from_none_without() -> None:
    """One rollout without routes would silently let the routers choose for all."""
    config = PolicyConfig(mini_batches=1, router_replay=ReplayedRoutes.generator)
    prompt = Prompt("a", (5, 6), "here", "exact", {"answer": "x"})
    with_routes = Rollout(prompt, 0, (7,), (LOG_PROB,), "stop", routes=np.zeros((2, 1, 1), dtype=np.uint8))
    rollouts = [with_routes, replace(with_routes, sample=1, routes=None)]
    policy: Any = ScoringPolicy()

    def scores(*_: str) -> Any:
        return None

    step = PolicyRollouts(rollouts, [1.0, 0.0])
    batch = compute_advantages(step, Grpo(), policy, None, None, scores, config, wrong=0.0, seed=(3,))
    with pytest.raises(MissingRoutes, match=r"policy\.router_replay"):
        m_step(policy, batch, scores, config, (3,), max_response_tokens=4)
    assert not policy.steps


def test_rows_keep_the_routes_that_the_policy_chose_for_them() -> None:
    """Mini-batches are shuffled, and each row's routes come back to it. Protects updates from another row's experts.
    Without the setting the policy records none."""

    class RecordingPolicy(ScoringPolicy):
        def score_with_routes(self, batch: Batch, score: Any) -> tuple[Any, tuple[torch.Tensor, ...]]:
            lengths = batch.lengths.tolist()
            routes = tuple(row[: n - 1, None, None] for row, n in zip(batch.tokens, lengths, strict=True))
            return self.score(batch, score), routes

    prompts = [Prompt(str(number), (number, 50 + number), "here", "exact", {"answer": "x"}) for number in range(7)]
    rollouts = [Rollout(prompt, 0, (9,), (LOG_PROB,), "stop") for prompt in prompts]
    step = PolicyRollouts(rollouts, [1.0] * 7)

    def scored(replay: ReplayedRoutes) -> AdvantageBatch:
        config = PolicyConfig(mini_batches=3, router_replay=replay)
        policy: Any = RecordingPolicy()
        return compute_advantages(step, Grpo(), policy, None, None, lambda *_: None, config, wrong=0.0, seed=(3,))

    routes = scored(ReplayedRoutes.old_log_probs).batch.routes
    assert routes and [route.flatten().tolist() for route in routes] == [list(prompt.token_ids) for prompt in prompts]
    assert scored(ReplayedRoutes.none).batch.routes is None
