"""The loop with partial rollouts: what steps learn from, what is measured, votes and the gate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tempo_megatron.config import CriticTraining, GateOn, LearnsFrom, Order
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.training import loop
from tempo_megatron.training.phases.length_history import LengthHistory
from tempo_megatron.training.state import RunState
from tests.unit.training.fake_run import WRONG, UnevenEngine, build_fake, restore, steps


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("learns_from", [LearnsFrom.unlabeled, LearnsFrom.both])
def test_partial_rollouts_leave_the_steps_as_they_are(order: Order, learns_from: LearnsFrom) -> None:
    """Every M-step has three prompts' rollouts, although six prompts are in flight; the E-step has its own on-policy
    ones. What is in flight is filled up, and what is carried over goes on."""
    run, events = build_fake(partial_rollouts=0.5, order=order)
    run.collector.generator, run.config.policy.learns_from = UnevenEngine(events), learns_from
    rows = 6 + 4 * (learns_from is LearnsFrom.both)
    paused = 0
    for iteration in range(1, 8):
        noted = steps(run, events, iteration)
        assert noted.count(f"policy scores {rows}") == noted.count("policy learns") == 1
        assert noted.count("critic scores 4") == 1 and f"critic scores {rows}" in noted
        assert len(run.collector.carried) == 3
        assert run.collector.unlabeled.position == 6 + 3 * (iteration - 1)
        paused += sum(rollout.paused for group in run.collector.carried for rollout in group.rollouts)
    assert paused > 0


def test_partial_rollouts_are_measured() -> None:
    """The first iteration resumes nothing; later ones have paused and resumed responses, and old tokens."""
    run, events = build_fake(partial_rollouts=0.5, labeled_prompts=1)
    run.collector.generator = UnevenEngine(events)
    figures = []
    for iteration in range(1, 8):
        run.state.iteration = iteration
        figures.append(loop.iterate(run))
    first = {name: value for name, value in figures[0].items() if name.startswith("rollouts/")}
    names = {f"rollouts/{name}" for name in ("paused", "resumed", "staleness_mean", "staleness_max")}
    assert first.keys() == names | {"rollouts/off_policy_tokens"}
    assert first["rollouts/paused"] > 0 == first["rollouts/resumed"] == first["rollouts/off_policy_tokens"]
    later = figures[1:]
    assert sum(each["rollouts/resumed"] for each in later) > 0
    assert max(each["rollouts/staleness_max"] for each in later) == 1
    assert any(0 < each["rollouts/off_policy_tokens"] < 1 for each in later)
    assert "rollouts/paused" not in loop.iterate(build_fake()[0])


def test_without_the_setting_requests_are_those_of_a_run_before_it_existed() -> None:
    """By a digest of the requests of two iterations with two M-steps each, from the commit before. No request has a
    group, and no call of the engine lets any pause."""
    run, _ = build_fake(m_steps=2)
    engine, digest = run.collector.generator, hashlib.sha256()
    generate = engine.generate

    def noting(requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        assert enough_groups is None and not any(request.group for request in requests)
        digest.update(repr(requests).encode())
        return generate(requests, enough_groups)

    engine.generate = noting
    for iteration in (1, 2):
        run.state.iteration = iteration
        loop.iterate(run)
    assert digest.hexdigest() == "570421750fb9083923ab713b3ee7cad2c06809bbe7e2748c9f6b082c116e8bef"
    assert run.collector.carried == []


def test_the_alarm_about_log_probs_looks_at_the_present_policys_tokens_alone() -> None:
    """The fake policy's log-probs are 0 and those of an iteration's tokens are minus its number, so the differences are
    exact: the distance that the policy has moved is no disagreement of generator and trainer."""
    run, events = build_fake(partial_rollouts=0.5, labeled_prompts=1)
    run.collector.generator = UnevenEngine(events)
    fresh, stale = "generation/log_prob_difference", "rollouts/stale_log_prob_difference_mean"
    seen = set()
    for iteration in range(1, 8):
        run.state.iteration = run.collector.generator.iteration = iteration
        figures = loop.iterate(run)
        share = figures["rollouts/off_policy_tokens"]
        if share < 1:
            assert figures[f"{fresh}_mean"] == figures[f"{fresh}_max"] == iteration
        if share > 0:
            assert figures[stale] == iteration - 1
        assert (f"{fresh}_mean" in figures, stale in figures) == (share < 1, share > 0)
        seen.add((share < 1, share > 0))
    assert (True, True) in seen and (True, False) in seen


def test_a_prompts_votes_wait_until_its_group_is_whole() -> None:
    """Four responses vote and two of them train; carried responses vote beside those that finished earlier."""
    run, events = build_fake("ttrl", partial_rollouts=0.5, votes_per_prompt=4)
    run.collector.generator, run.config.critic.training = UnevenEngine(events), CriticTraining.none
    resumed = 0
    for iteration in range(1, 6):
        collected = run.collector.collect(iteration, unlabeled=3)
        assert collected.partial and len(collected.unlabeled) == 12
        assert not any(rollout.paused for rollout in collected.unlabeled)
        resumed += collected.partial.resumed
        trained = loop.policy_rollouts(run, collected)
        prompts_of = [rollout.prompt.id for rollout in trained.rollouts]
        assert trained.votes and len(trained.rollouts) == 6
        assert trained.votes.total.tolist() == [2.0 * prompts_of.count(id_) for id_ in prompts_of]
    assert resumed > 0


def test_carried_rollouts_wait_while_the_gate_is_closed() -> None:
    """The policy does not change then, so that they do not grow older either."""
    run, events = build_fake(partial_rollouts=0.5, gate=0.7, gate_on=GateOn.auroc)
    run.collector.generator, run.state.gate_value = UnevenEngine(events), 1.0
    run.models.critic.preferred = WRONG
    steps(run, events)
    carried = list(run.collector.carried)
    assert carried and run.state.gate_value == 0.0
    assert "policy learns" not in steps(run, events, 2)
    assert run.collector.carried == carried


def test_a_resumed_run_goes_on_with_what_it_carried() -> None:
    """Its state in JSON holds the paused responses; its steps, its carried groups and its expectations of lengths are
    those of the run that was not interrupted."""

    def build() -> tuple[Any, list[str]]:
        run, events = build_fake(partial_rollouts=0.5)
        run.collector.generator = UnevenEngine(events)
        return run, events

    run, events = build()
    for iteration in range(1, 4):
        steps(run, events, iteration)
    saved = json.dumps(run.snapshot().to_json())
    assert any(rollout.paused and rollout.response_ids for group in run.collector.carried for rollout in group.rollouts)
    uninterrupted = [steps(run, events, iteration) for iteration in range(4, 7)]

    state = RunState.from_json(json.loads(saved))
    for kept in (replace(state, carried=()), state):
        resumed, resumed_events = build()
        restore(resumed, kept)
        noted = [steps(resumed, resumed_events, iteration) for iteration in range(4, 7)]
        assert (noted == uninterrupted) == bool(kept.carried)
    assert resumed.collector.carried == run.collector.carried
    assert resumed.collector.history.expected_tokens == run.collector.history.expected_tokens


def test_lengths_are_observed_once_a_group_is_whole_and_carried_requests_come_first() -> None:
    """What a paused response has so far is not its length. Requests without an expectation come first. A carried one
    has none, so that a short one does not wait for ever, and a labeled one has none, because the call waits for it."""
    run, events = build_fake(partial_rollouts=0.5)
    engine = run.collector.generator = UnevenEngine(events)
    carried = known = 0
    for iteration in range(1, 5):
        waiting = sum(rollout.paused for group in run.collector.carried for rollout in group.rollouts)
        collected = run.collector.collect(iteration, labeled=2, unlabeled=3)
        expected = LengthHistory()
        expected.observe([*collected.labeled, *collected.unlabeled])
        if iteration == 1:
            assert run.collector.history.expected_tokens == expected.expected_tokens
        assert all(request.expected_tokens is None for request in engine.requests[: 4 + waiting])
        carried += waiting
        known += sum(request.expected_tokens is not None for request in engine.requests[4 + waiting :])
    assert carried > 0 < known
