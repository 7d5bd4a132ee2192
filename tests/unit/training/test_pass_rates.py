"""The history of pass rates: what it counts, and that a run which resumes goes on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tempo_megatron.algorithms.experience import Votes, count_votes
from tempo_megatron.config import CriticTraining, LearnsFrom
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.training import loop
from tempo_megatron.training.phases.pass_rates import PassRateHistory
from tempo_megatron.training.state import RunState
from tempo_megatron.validation.pseudo_labels import warm_up_problems
from tests.unit.training.fake_run import RIGHT, WRONG, FakeEngine, build_fake, restore

NAN = float("nan")


def rollouts(*prompt_ids: str) -> list[Rollout]:
    return [Rollout(Prompt(name, (1,), "here", "exact"), 0, (2,), (0.0,), "stop") for name in prompt_ids]


def votes(answers: list[int], prompts: list[int]) -> Votes:
    return count_votes(torch.tensor(answers), torch.ones(len(answers)).bool(), torch.tensor(prompts))


def test_pass_rates_are_shares_of_right_and_of_majority_responses() -> None:
    """A labeled question has its correctness, whatever its votes. A tie of the vote has no majority: 0."""
    history = PassRateHistory()
    step = rollouts("l", "l", "l", "u", "u", "u", "tie", "tie")
    observed = history.observe(
        step, [1.0, 0.0, 0.0, *[NAN] * 5], votes([0, 0, 0, 1, 1, 2, 3, 4], [0, 0, 0, 1, 1, 1, 2, 2])
    )
    assert (history.labeled, history.unlabeled) == ({"l": [1 / 3]}, {"u": [2 / 3], "tie": [0.0]})
    assert observed.rows[:, 0].tolist() == [1 / 3] * 3 + [2 / 3] * 3 + [0.0] * 2
    assert observed.reliable.tolist() == [[1 / 3]]


def test_histories_grow_by_one_a_step_and_reliable_questions_come_and_go() -> None:
    """An unlabeled question is reliable as long as it was selected when a step last had it. A question in another
    step's batch keeps its state."""
    history, labeled_votes = PassRateHistory(), votes([0, 0, 1], [0, 1, 2])
    step = rollouts("l", "u", "v")
    for learning, reliable in [([1, 1, 0], ["u"]), ([1, 0, 1], ["v"])]:
        history.observe(step, [1.0, NAN, NAN], labeled_votes)
        assert history.select(step, torch.tensor(learning).bool()) == 0.5
        assert history.reliable == reliable
    observed = history.observe(rollouts("l", "u"), [0.0, NAN], votes([0, 0], [0, 1]))
    assert observed.rows.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    assert observed.reliable[0].tolist() == [1.0, 1.0, 0.0]
    assert observed.reliable[1, :2].tolist() == [1.0, 1.0] and observed.reliable[1, 2].isnan()
    assert history.select(rollouts("l", "u"), torch.tensor([True, False])) == 0.0 and history.reliable == ["v"]


class VariedEngine(FakeEngine):
    """Answers right or wrong by the request's seed, so that pass rates vary from pass to pass."""

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        return [Completion(((RIGHT, WRONG)[request.seed % 3 == 0],), (0.0,), "stop") for request in requests]


def build_trapo() -> Any:
    """A run whose streams have eight questions of each kind: a pass takes four steps."""
    run, events = build_fake("trapo", unlabeled_prompts=2, samples_per_prompt=5)
    run.collector.generator = VariedEngine(events)
    run.config.policy.learns_from, run.config.critic.training = LearnsFrom.both, CriticTraining.none
    run.config.policy.trapo.warm_up_passes = 2
    run.models.critic = None
    return run


def iterate(run: Any, iteration: int) -> dict[str, float]:
    run.state.iteration = iteration
    metrics: dict[str, float] = loop.iterate(run)
    return metrics


def test_unlabeled_questions_train_after_the_warm_up() -> None:
    """Two passes of four steps over labeled questions. Then the most similar question of each step trains. The check at
    start knows the step."""
    run = build_trapo()
    selected = [iterate(run, iteration)["policy/selected_questions"] for iteration in range(1, 11)]
    assert selected[:7] == [0.0] * 7 and all(share >= 0.5 for share in selected[7:])
    for iterations, refused in ((7, True), (8, False)):
        run.config.loop.iterations = iterations
        assert bool(list(warm_up_problems(run.config, 8, 8))) is refused


@pytest.mark.parametrize("interruption", [3, 9])
def test_a_run_that_resumes_has_the_pass_rates_that_it_had(interruption: int) -> None:
    """Through the checkpoint's JSON, to the last bit. The snapshot is not changed by the steps that follow it."""
    unbroken = build_trapo()
    for iteration in range(1, interruption + 1):
        iterate(unbroken, iteration)
    state = RunState.from_json(json.loads(json.dumps(unbroken.snapshot().to_json())))
    snapshot = unbroken.snapshot()
    figures = [iterate(unbroken, iteration) for iteration in range(interruption + 1, 13)]
    assert snapshot.pass_rates == state.pass_rates != unbroken.pass_rates
    resumed = build_trapo()
    restore(resumed, state)
    resumed.pass_rates = state.pass_rates.copy()
    assert [iterate(resumed, iteration) for iteration in range(interruption + 1, 13)] == figures
    assert resumed.pass_rates == unbroken.pass_rates
    forgetful = build_trapo()
    restore(forgetful, state)
    assert [iterate(forgetful, iteration) for iteration in range(interruption + 1, 13)] != figures
