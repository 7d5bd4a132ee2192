"""The steps of an iteration: their order, and the rollouts that each uses.

The run is real down to its phases; the engine, the grader and the models are fakes that note what they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tempo_megatron.config import CriticTraining, GateOn, Labels, LearnsFrom, Order
from tempo_megatron.metrics.calibration import CalibrationBin
from tempo_megatron.training import loop
from tests.unit.training.fake_run import RIGHT, WRONG, FakeEngine, build_fake, steps

E_STEP = ["critic scores 4", "critic learns"]
M_STEP = ["policy scores 6", "critic scores 6", "policy learns"]


def test_an_iteration_is_an_e_step_then_an_m_step_on_one_generate_call() -> None:
    """The paper's order: values are computed after the critic has learned."""
    assert steps(*build_fake()) == ["generate 4+6", *E_STEP, *M_STEP]


def test_the_reliability_of_shuffled_labels_is_that_of_true_grades() -> None:
    """The page says that it compares with right responses. Of several E-steps the first one's is kept."""
    run, _ = build_fake(e_steps=2)
    run.config.critic.labels = Labels.shuffled
    rollouts = run.collector.collect(1, labeled=4).labeled
    grades = [float(rollout.response_ids == (RIGHT,)) for rollout in rollouts]
    for step in range(2):
        loop.run_e_step(run, rollouts, grades, 1, step)
    ((moment, bins),) = run.recorder.noted_bins
    assert moment == "labeled" and bins == [CalibrationBin(4, 0.0, 0.0), CalibrationBin(4, 1.0, 1.0)]


def test_an_evaluation_puts_the_generator_to_sleep() -> None:
    """Recording needs it asleep. Its prefix cache must not depend on whether a run records."""
    run, _ = build_fake()
    run.evaluate(1, at_an_end=False)
    assert run.generator.sleeps == 1


def test_values_first_reads_them_before_the_critic_moves() -> None:
    """The order of the authors' code."""
    run = build_fake(order=Order.values_first)
    assert steps(*run) == ["generate 4+6", "critic scores 6", *E_STEP, "policy scores 6", "policy learns"]


def test_the_critic_is_recalibrated_every_n_iterations_in_so_many_steps() -> None:
    """E-steps have prompts of their own, and an iteration without one samples no labeled prompt."""
    run = build_fake(e_step_interval=3, e_steps=2)
    assert [steps(*run, iteration) for iteration in (1, 2, 3, 4)] == [
        ["generate 8+6", *E_STEP, *E_STEP, *M_STEP],
        ["generate 0+6", *M_STEP],
        ["generate 0+6", *M_STEP],
        ["generate 8+6", *E_STEP, *E_STEP, *M_STEP],
    ]


def test_shares_of_experts_are_those_of_all_updates_of_the_iteration() -> None:
    """Protects from those of the last E-step alone, and from those of the stages before the first iteration."""
    run, _ = build_fake(e_steps=2)
    run.models.critic.expert_load.updates = run.models.policy.expert_load.updates = 50
    metrics = loop.iterate(run)
    assert metrics["critic/expert_share_max"] == 2
    assert metrics["policy/expert_share_max"] == 1


def test_further_policy_steps_learn_from_the_policy_that_the_last_one_made() -> None:
    """Weights go to the generator before it samples again."""
    assert steps(*build_fake(m_steps=2)) == ["generate 4+6", *E_STEP, *M_STEP, "sync", "generate 0+6", *M_STEP]


def test_rollouts_of_further_policy_steps_are_not_given_up() -> None:
    """A run that is asked to stop then would save a policy that has half learned as that of the iteration before."""
    run, events = build_fake(m_steps=2)

    @contextlib.contextmanager
    def interruptible(generator: FakeEngine) -> Iterator[None]:
        events.append("interruptible:")
        yield
        events.append("no more")

    run.lifecycle.interruptible = interruptible
    noted = steps(run, events)
    assert noted[:4] == ["interruptible:", "generate 4+6", "no more", "critic scores 4"]
    assert "generate 0+6" in noted[4:] and "interruptible:" not in noted[4:]


def test_the_gate_keeps_the_policy_waiting_until_the_critic_can_judge() -> None:
    """Closed at first, open once the measured AUROC is high, closed again when it falls; the critic goes on."""
    run, events = build_fake(gate=0.7, gate_on=GateOn.auroc)
    critic = run.models.critic
    samples = run.config.calibration.samples
    before_and_after = [f"critic scores {samples}", *E_STEP, f"critic scores {samples}"]
    waiting = ["generate 4+0 measured", *before_and_after]
    critic.preferred = WRONG
    assert steps(run, events) == waiting and run.state.gate_value == 0.0
    critic.preferred = RIGHT
    assert steps(run, events) == waiting and run.state.gate_value == 1.0
    assert steps(run, events) == ["generate 4+6 measured", *before_and_after, *M_STEP]
    critic.preferred = WRONG
    assert "policy learns" in steps(run, events)
    assert steps(run, events) == waiting


def test_ppo_learns_from_labeled_rollouts_alone_and_its_critic_from_their_returns() -> None:
    """No unlabeled question is sampled."""
    run, events = build_fake("ppo")
    run.config.policy.learns_from, run.config.critic.training = LearnsFrom.labeled, CriticTraining.returns
    learning = ["policy scores 4", "critic scores 4", "critic learns", "policy learns"]
    assert steps(run, events) == ["generate 4+0", *learning]


def test_a_frozen_critic_is_read_and_not_trained() -> None:
    """The ablation costs no labeled rollouts."""
    run, events = build_fake("frozen_critic")
    run.config.critic.training = CriticTraining.frozen
    assert steps(run, events) == ["generate 0+6", *M_STEP]


def test_a_policy_step_takes_its_labeled_rollouts_whatever_the_number_of_e_steps() -> None:
    """Two E-steps on two prompts each, then an M-step on two of them and three unlabeled ones."""
    run, events = build_fake("tempo_reference_code", e_steps=2)
    run.config.policy.learns_from = LearnsFrom.both
    learning = ["policy scores 10", "critic scores 10", "policy learns"]
    assert steps(run, events) == ["generate 8+6", *E_STEP, *E_STEP, *learning]


def test_rollouts_sampled_for_the_vote_alone_do_not_train() -> None:
    """TTRL's code: 64 votes, 32 rollouts. Here of two samples a prompt one trains, and both vote."""
    run, events = build_fake("ttrl", samples_per_prompt=1, votes_per_prompt=2)
    run.config.critic.training = CriticTraining.none
    assert steps(run, events) == ["generate 0+6", "policy scores 3", "policy learns"]
    trained = loop.policy_rollouts(run, run.collector.collect(1, unlabeled=3))
    assert [rollout.response_ids for rollout in trained.rollouts] == [(RIGHT,)] * 3
    assert trained.votes is not None and trained.votes.total.tolist() == [2.0] * 3


@pytest.mark.parametrize("concludes", [True, False])
def test_metrics_are_logged_before_the_checkpoint_that_counts_them(concludes: bool) -> None:
    """A line is on the disk once it is logged, so that no checkpoint counts one that a node's crash took."""
    run, events = build_fake()
    run.models.critic, run.state.initial_evaluation = None, {}
    run.config.loop.iterations = run.iteration
    if concludes:
        loop.conclude(run, {})
    else:
        loop.start(run)
    assert events[-2:] == ["log", "save"]


@pytest.mark.parametrize("has_ended", [True, False])
def test_an_iteration_that_turns_out_to_be_the_last_is_concluded(has_ended: bool) -> None:
    """A run that was interrupted after iteration 5 and is to have 4 now evaluates and saves what it has; one that had
    done so is left alone."""
    run, events = build_fake()
    run.state.iteration, run.config.loop.iterations = 5, 4
    run.state.final_iteration = 5 if has_ended else 0
    run.finish = lambda: events.append("finish")
    assert loop.train(run.config, lambda config, watched: run)
    assert events == ([] if has_ended else ["log", "save"]) + ["finish"]
    assert run.state.final_iteration == 5
    assert (run.state.final_evaluation is None) is has_ended
