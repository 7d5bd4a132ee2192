"""Which steps an iteration takes, in which order, on which rollouts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import Config, CriticTraining, GateOn, LearnsFrom, Order
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.training import loop
from tempo_megatron.training.phases.collect import Collected


def rollouts(stream: str, prompts: int, samples: int) -> list[Rollout]:
    return [
        Rollout(Prompt(f"{stream}{at}", (1,), "here", "exact"), sample, (7,), (0.0,), "stop")
        for at in range(prompts)
        for sample in range(samples)
    ]


class FakeRun(SimpleNamespace):
    """A run whose phases write down what they are asked."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str = "tempo", auroc: float = 0.9, **settings: Any
    ) -> None:
        config = Config(method=name)
        config.loop.labeled_prompts, config.loop.unlabeled_prompts, config.loop.samples_per_prompt = 2, 3, 2
        for key, value in settings.items():
            setattr(config.loop, key, value)
        super().__init__(config=config, method=method(name), iteration=1, asked=[], gate_value=None)
        self.critic = self.policy = SimpleNamespace()
        self.models = SimpleNamespace(needed_critic=self.critic)
        self.may_be_interrupted = contextlib.nullcontext
        self.reference = self.scores = self.grader = None
        self.collector = SimpleNamespace(measured=[1] if config.loop.gate else [], collect=self.collect)
        self.auroc = auroc

        def note(what: str, result: Any) -> Any:
            return lambda *given, **named: self.asked.append(what) or (result(*given) if callable(result) else result)

        monkeypatch.setattr(loop, "calibrate", note("calibrate", {"critic/loss": 1.0}))
        monkeypatch.setattr(loop, "values", note("values", torch.zeros(1)))
        monkeypatch.setattr(loop, "estimate", lambda rows, *_, **named: self.estimate(rows, named))
        monkeypatch.setattr(loop, "learn_returns", note("learn_returns", {}))
        monkeypatch.setattr(loop, "refine", note("refine", {}))
        monkeypatch.setattr(loop, "evidence", note("evidence", {}))
        monkeypatch.setattr(loop, "measure", lambda *_: {str(config.loop.gate_on): self.auroc})

    def estimate(self, rows: Any, named: dict[str, Any]) -> Any:
        count = len(rows.rollouts)
        self.asked.append(f"estimate {count}{' early' if named['critic_values'] is not None else ''}")
        experience = SimpleNamespace(
            labeled=~torch.tensor(rows.correct).isnan(),
            response_mask=torch.ones(count, 1).bool(),
            needed_values=lambda: torch.zeros(count, 1),
        )
        return SimpleNamespace(rewards=torch.zeros(count), experience=experience)

    def collect(
        self, iteration: int, *, labeled: int = 0, unlabeled: int = 0, measure: bool = False, step: int = 0
    ) -> Any:
        self.asked.append(f"collect {labeled}+{unlabeled}{' measured' if measure else ''}")
        return Collected(
            rollouts("l", labeled, 2),
            [1.0] * 2 * labeled,
            rollouts("u", unlabeled, 2),
            rollouts("m", 1, 2),
            [1.0, 0.0],
        )

    @property
    def gate_is_open(self) -> bool:
        return not self.config.loop.gate or (self.gate_value or 0.0) >= self.config.loop.gate

    @property
    def policy_learns_labeled(self) -> bool:
        return self.config.policy.learns_from is not LearnsFrom.unlabeled

    @property
    def policy_learns_unlabeled(self) -> bool:
        return self.config.policy.learns_from is not LearnsFrom.labeled

    def seed(self, iteration: int, step: int) -> tuple[int, ...]:
        return (iteration, step)

    def phase(self, name: str) -> Any:
        return contextlib.nullcontext()

    def count(self, drawn: Any) -> dict[str, float]:
        return {}

    def observe(self, rows: Any, found: Any) -> dict[str, float]:
        return {}

    def sync(self) -> None:
        self.asked.append("sync")

    def steps(self, iteration: int = 1) -> list[str]:
        self.asked.clear()
        self.iteration = iteration
        loop.iterate(self)  # type: ignore[arg-type]
        return list(self.asked)


def test_an_iteration_is_an_e_step_then_an_m_step_on_one_generate_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's order: values are read after the critic has learned."""
    assert FakeRun(monkeypatch).steps() == ["collect 2+3", "calibrate", "estimate 6", "evidence", "refine"]


def test_values_first_reads_them_before_the_critic_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the authors' code."""
    run = FakeRun(monkeypatch, order=Order.values_first)
    assert run.steps() == ["collect 2+3", "values", "calibrate", "estimate 6 early", "evidence", "refine"]


def test_the_critic_is_recalibrated_every_n_iterations_in_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """E-steps have prompts of their own, and an iteration without one draws no labeled rollouts."""
    run = FakeRun(monkeypatch, e_step_interval=3, e_steps=2)
    assert [run.steps(iteration)[:3] for iteration in (1, 2, 3, 4)] == [
        ["collect 4+3", "calibrate", "calibrate"],
        ["collect 0+3", "estimate 6", "evidence"],
        ["collect 0+3", "estimate 6", "evidence"],
        ["collect 4+3", "calibrate", "calibrate"],
    ]


def test_further_policy_steps_learn_from_the_policy_that_the_last_one_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go to the generator before it samples again."""
    taken = FakeRun(monkeypatch, m_steps=2).steps()
    assert taken[-6:] == ["refine", "sync", "collect 0+3", "estimate 6", "evidence", "refine"]


def test_rollouts_of_further_policy_steps_are_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is asked to stop then would save a policy that has half learned as that of the iteration before."""
    run = FakeRun(monkeypatch, m_steps=2)

    @contextlib.contextmanager
    def may_be_interrupted() -> Iterator[None]:
        run.asked.append("may be given up:")
        yield
        run.asked.append("no more")

    run.may_be_interrupted = may_be_interrupted
    taken = run.steps()
    assert taken[:4] == ["may be given up:", "collect 2+3", "no more", "calibrate"]
    assert "collect 0+3" in taken[4:] and "may be given up:" not in taken[4:]


def test_the_gate_keeps_the_policy_waiting_until_the_critic_can_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed at first, open once the measured AUROC is there, closed again when it falls; the critic goes on."""
    run = FakeRun(monkeypatch, gate=0.7, gate_on=GateOn.auroc, auroc=0.6)
    waiting = ["collect 2+0 measured", "calibrate"]
    assert run.steps() == waiting and run.gate_value == 0.6
    run.auroc = 0.8
    assert run.steps() == waiting
    assert run.steps() == ["collect 2+3 measured", "calibrate", "estimate 6", "evidence", "refine"]
    run.auroc = 0.5
    assert "refine" in run.steps()
    assert run.steps() == waiting


def test_ppo_learns_from_labeled_rollouts_alone_and_its_critic_from_their_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No unlabeled question is sampled."""
    run = FakeRun(monkeypatch, "ppo")
    run.config.policy.learns_from, run.config.critic.training = LearnsFrom.labeled, CriticTraining.returns
    assert run.steps() == ["collect 2+0", "estimate 4", "learn_returns", "refine"]


def test_a_frozen_critic_is_read_and_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablation costs no labeled rollouts."""
    run = FakeRun(monkeypatch, "frozen_critic")
    run.config.critic.training = CriticTraining.frozen
    assert run.steps() == ["collect 0+3", "estimate 6", "evidence", "refine"]


def test_a_policy_step_takes_its_labeled_rollouts_whatever_the_number_of_e_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two E-steps on two prompts each, then an M-step on two of them and three unlabeled ones."""
    run = FakeRun(monkeypatch, "tempo_reference_code", e_steps=2)
    run.config.policy.learns_from = LearnsFrom.both
    assert run.steps() == ["collect 4+3", "calibrate", "calibrate", "estimate 10", "evidence", "refine"]


def test_rollouts_sampled_for_the_vote_alone_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """TTRL's code: 64 votes, 32 rollouts. Here of two samples a prompt one trains, and both vote."""
    run = FakeRun(monkeypatch, "ttrl", samples_per_prompt=1, votes_per_prompt=2)
    voted: dict[str, list[int]] = {}

    def votes(grader: object, given: list[Rollout], trained: list[int]) -> None:
        voted.update(given=[len(given)], trained=trained)

    monkeypatch.setattr(loop, "read_votes", votes)
    run.config.critic.training = CriticTraining.none
    assert run.steps() == ["collect 0+3", "estimate 3", "refine"]
    assert voted == {"given": [6], "trained": [0, 2, 4]}


@pytest.mark.parametrize("concludes", [True, False])
def test_metrics_are_logged_before_the_checkpoint_that_counts_them(
    monkeypatch: pytest.MonkeyPatch, concludes: bool
) -> None:
    """A line is on the disk once it is logged, so that no checkpoint counts one that a node's crash took."""
    run = FakeRun(monkeypatch)
    run.critic, run.stopped, run.evaluated_at_start = None, False, True
    run.config.loop.iterations = run.iteration
    run.course = SimpleNamespace(is_in=lambda stage: False)
    run.consider = lambda: {}
    run.record_evaluation = lambda *_, **__: {}
    run.log = lambda stage, metrics: run.asked.append("log")
    run.save = lambda: run.asked.append("save")
    if concludes:
        loop.conclude(run, {})  # type: ignore[arg-type]
    else:
        loop.start(run)  # type: ignore[arg-type]
    assert run.asked[-2:] == ["log", "save"]


@pytest.mark.parametrize("ended", [True, False])
def test_an_iteration_that_turns_out_to_be_the_last_is_concluded(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """A run that was interrupted after iteration 5 and is to have 4 now evaluates and saves what it has; one that had
    done so is left alone."""
    run = FakeRun(monkeypatch)
    run.iteration, run.config.loop.iterations, run.stopped, run.has_ended = 5, 4, False, ended
    run.course = SimpleNamespace(in_stages=False, unconcluded=None)
    run.watchdog = SimpleNamespace(stop=lambda: None)
    run.progress = lambda items, description: items
    run.consider = lambda: {}
    run.record_evaluation = lambda iteration, at_an_end: run.asked.append(f"evaluate {iteration} {at_an_end}") or {}
    run.log = lambda stage, metrics: None
    run.save = lambda: run.asked.append("save")
    run.finish = lambda: run.asked.append("finish")
    monkeypatch.setattr(loop, "Run", lambda config, watched: run)
    assert loop.train(run.config)
    assert run.asked == ([] if ended else ["evaluate 5 True", "save"]) + ["finish"]
