"""Step sizes, repeated prompts, weighted streams, and labeled prompts that are replaced."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.config import (
    Config,
    CriticConfig,
    LearningRateSchedule,
    OptimizerConfig,
    PolicyConfig,
    ScheduleUnit,
    load_config,
)
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.types import Prompt, Rollout
from tempo_megatron.generation.requests import Completion, Request
from tempo_megatron.megatron.learning_rate import learning_rate, schedule_in_optimizer_steps
from tempo_megatron.training.phases.collect import Collector
from tempo_megatron.training.phases.generate import generate
from tempo_megatron.validation.recipe import recipe_problems


def test_the_step_size_warms_up_and_decays_to_its_minimum() -> None:
    """Closed forms at the corners and half way; constant after the end."""
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=4, decay_steps=14, minimum_learning_rate=0.2)
    assert [learning_rate(optimizer, step) for step in (0, 1, 3, 4, 900)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    for schedule in (LearningRateSchedule.linear, LearningRateSchedule.cosine):
        optimizer.schedule = schedule
        assert [learning_rate(optimizer, step) for step in (3, 4, 9, 14, 99)] == pytest.approx(
            [1.0, 1.0, 0.6, 0.2, 0.2]
        )
    assert learning_rate(optimizer, 6) > 0.8 + 0.2 * 0.2  # a cosine starts slower than a line


def test_a_schedule_counts_the_unit_of_its_source() -> None:
    """Other code steps its schedule once a batch, not once a mini-batch: 50 of its steps are 200 of four mini-batches.
    A share of the run is rounded down to a unit, as there."""
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=50, schedule_unit=ScheduleUnit.batch)
    counted = schedule_in_optimizer_steps(CriticConfig(optimizer=optimizer, mini_batches=4))
    assert [learning_rate(counted, step) for step in (0, 99, 199, 200)] == [0.005, 0.5, 1.0, 1.0]
    optimizer = OptimizerConfig(
        learning_rate=1.0,
        schedule=LearningRateSchedule.cosine,
        schedule_unit=ScheduleUnit.batch,
        warmup_share=0.03,
        decay_steps=1650,
    )
    counted = schedule_in_optimizer_steps(PolicyConfig(optimizer=optimizer, mini_batches=4, epochs=2))
    assert [learning_rate(counted, step) for step in (0, 391, 392)] == [1 / 392, 1.0, 1.0]  # 49 batches of 8 steps
    half = (49 + 1650) * 8 // 2
    assert [learning_rate(counted, step) for step in (half, 1650 * 8)] == pytest.approx([0.5, 0.0])
    of_steps = OptimizerConfig(learning_rate=1.0, warmup_steps=50)
    assert learning_rate(schedule_in_optimizer_steps(PolicyConfig(optimizer=of_steps)), 49) == 1.0


CORRECTED = ("policy.rollout_correction.weight=token", "policy.rollout_correction.cap=2")


class Echo:
    """An engine that answers a request with its seed."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request], enough_groups: int | None = None) -> list[Completion]:
        self.requests += requests
        return [Completion((request.seed,), (0.0,), "stop") for request in requests]

    def sleep(self) -> None: ...


def prompt(name: str, answer: str | None = None) -> Prompt:
    return Prompt(name, (1, 2), "here", "exact", None if answer is None else {"answer": answer})


def test_a_prompt_that_comes_twice_is_sampled_anew() -> None:
    """160 questions in a batch of 256: the second time round must not repeat the first one's responses."""
    twice = [("unlabeled", prompt("a")), ("unlabeled", prompt("b")), ("unlabeled", prompt("a"))]
    settings: dict[str, Any] = {"seed": 0, "iteration": 1, "max_tokens": 4, "temperature": 1.0, "top_p": 1.0}
    rollouts = generate(Echo(), twice, samples=2, **settings)
    assert [rollout.sample for rollout in rollouts] == [0, 1, 0, 1, 2, 3]
    assert len({rollout.response_ids for rollout in rollouts}) == 6
    by_stream = generate(Echo(), [("x", prompt("a")), ("y", prompt("b"))], samples={"x": 1, "y": 3}, **settings)
    assert [rollout.prompt.id for rollout in by_stream] == ["a", "b", "b", "b"]


@pytest.mark.parametrize(("weight", "expected"), [(0.25, 10), (0.5, 20), (1.0, 40), (1.5, 60), (2.0, 80)])
def test_an_item_of_weight_w_comes_w_times_a_pass(weight: float, expected: int) -> None:
    """Data mixing: over forty passes exactly so, give or take the first and the last."""
    stream = Stream("ab", 0, "mixed", [weight, 1.0])
    counts: Counter[str] = Counter()
    while counts["b"] < 40:
        counts.update(stream.take(1))
    assert abs(counts["a"] - expected) <= 2


def test_a_weighted_stream_resumes_from_its_position_and_can_be_set_back() -> None:
    """A checkpoint still holds one number."""
    stream = Stream(range(9), 3, "mixed", [0.5, 2.0, 1.0] * 3)
    items = stream.take(50)
    for position in (23, 7, 41):
        resumed = Stream(range(9), 3, "mixed", [0.5, 2.0, 1.0] * 3)
        resumed.position = position
        assert resumed.take(50 - position) == items[position:]
    stream.position = 11
    assert stream.take(20) == items[11:31]


class ByPrompt:
    """Right always, never, or every other time, as the prompt's name says."""

    errors = timeouts = 0

    def grade(self, rollouts: Sequence[Rollout], answers: object) -> list[float]:
        return [{"r": 1.0, "w": 0.0}.get(r.prompt.id[0], float(r.sample % 2)) for r in rollouts]


def collector(names: Sequence[str], **loop: int) -> tuple[Collector, Echo]:
    config = Config()
    config.loop.samples_per_prompt, config.loop.drop_uniform_prompts = 2, True
    for key, value in loop.items():
        setattr(config.loop, key, value)
    engine = Echo()
    labeled = Stream([prompt(name, "x") for name in names], 0, "labeled")
    unlabeled = Stream([prompt("u")], 0, "unlabeled")
    labeled_collector = Collector(
        config,
        engine,  # type: ignore[arg-type]
        ByPrompt(),  # type: ignore[arg-type]
        labeled,
        unlabeled,
        [],
        lambda name: contextlib.nullcontext(),
    )
    return labeled_collector, engine


def test_prompts_whose_responses_score_alike_are_replaced() -> None:
    """All right or all wrong teaches nothing within a group: others take their place until the batch is mixed."""
    prompt_collector, _ = collector(["r1", "r2", "w1", "m1", "m2", "m3", "m4", "m5"])
    collected = prompt_collector.collect(1, labeled=8)
    kept = [rollout.prompt.id for rollout in collected.labeled]
    assert len(kept) == 16 and all(name.startswith("m") for name in kept)
    assert collected.replaced_prompts >= 3
    assert collected.correct == [0.0, 1.0] * 8


def test_a_stream_without_mixed_prompts_ends_the_search() -> None:
    """`loop.refill_tries` rounds, then what there is: the batch keeps its size, and the run goes on."""
    prompt_collector, engine = collector(["r1", "w1"], refill_tries=3)
    collected = prompt_collector.collect(1, labeled=2)
    assert len(collected.labeled) == 4
    assert len(engine.requests) == 4 * (1 + 3)
    assert len({request.seed for request in engine.requests}) == len(engine.requests)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=nowhere.Method"], "cannot be imported"),
        (["critic.training=none"], "critic.training: method tempo needs a critic"),
        (["method=grpo", "critic.training=returns"], "reads no values, so there are no returns"),
        (["method=ttrl", "policy.learns_from=both"], "votes on unlabeled questions"),
        (["method=trapo", "policy.learns_from=unlabeled"], "compares unlabeled with labeled questions: set both"),
        (["method=trapo"], "policy.trapo.warm_up_passes: 8 passes over 40 labeled and 12 unlabeled questions"),
        (["method=ttrl", "loop.votes_per_prompt=3"], "loop.votes_per_prompt: at least loop.samples_per_prompt (4)"),
        (["method=grpo", "loop.samples_per_prompt=1"], "compares a prompt's responses"),
        (["loop.gate=0.7"], "loop.gate: needs calibration.questions"),
        (
            ["loop.gate=0.7", "calibration.questions=8", "calibration.samples=1"],
            "calibration.samples: at least 2, loop.gate_on compares a prompt's responses",
        ),
        (["checkpoint.select_best=true"], "checkpoint.select_best: needs calibration.questions"),
        (["checkpoint.patience=2"], "checkpoint.patience: needs checkpoint.select_best"),
        (["policy.optimizer.schedule=linear"], "policy.optimizer.decay_steps: more than warmup_steps"),
        (
            [
                "policy.optimizer.warmup_share=0.03",
                "policy.optimizer.warmup_steps=5",
                "policy.optimizer.decay_steps=9",
            ],
            "policy.optimizer.warmup_share: 0.03, and warmup_steps 5: set one of them",
        ),
        (["critic.optimizer.warmup_share=0.03"], "critic.optimizer.warmup_share: a share of decay_steps, which is 0"),
        (["policy.dual_clip=0.5"], "policy.dual_clip: above 1"),
        (
            ["method=ppo", "policy.mini_batches=25"],
            "policy.mini_batches: 25 is more than the rollouts of loop.labeled",
        ),
        (["method=ppo", "data.labeled=[]"], "data.labeled: required"),
        (["method=grpo", "loop.votes_per_prompt=8"], "method grpo counts no votes"),
        (["method=frozen_critic", "stages.critic_start.iterations=0"], "a frozen critic needs critic.checkpoint"),
        (["method=ttrl", "critic.target_range=minus_one_one"], "its rewards are 0 and 1"),
        (["calibration.questions=40"], "calibration.questions: 40 of 40 labeled questions"),
        (["method=grpo", "policy.learns_from=unlabeled"], "policy.learns_from: unlabeled, but method grpo needs"),
        (["method=grpo", "policy.learns_from=both"], "policy.learns_from: both, but method grpo needs"),
        (["method=ppo", "policy.learns_from=unlabeled"], "policy.learns_from: unlabeled, but method ppo needs"),
        (["method=ppo", "policy.learns_from=both"], "policy.learns_from: both, but method ppo needs"),
        (["critic.training=returns"], "method tempo rewards unlabeled rows by the critic's own values"),
        (["method=tempo_reference_code", "critic.training=returns"], "would teach it its own verdict"),
        (["method=frozen_critic", "critic.training=returns"], "would teach it its own verdict"),
        (
            ["method=tempo_reference_code", "stages.critic_start.iterations=0"],
            "loop.order: with values_first method tempo_reference_code rewards the first iteration's rows by a critic",
        ),
        (["method=ttrl", "loop.samples_per_prompt=1"], "method ttrl reads nothing from the vote of one response"),
        (
            ["loop.partial_rollouts=0.4", *CORRECTED],
            "loop.partial_rollouts: 0, or at least 0.5, got 0.4",
        ),
        (["loop.partial_rollouts=0.8"], "policy.rollout_correction: needed with loop.partial_rollouts"),
        (["loop.staleness=2"], "loop.staleness: 2 does nothing without loop.partial_rollouts"),
        (["loop.partial_rollouts=0.8", "loop.m_steps=2"], "loop.m_steps: 1 with loop.partial_rollouts, got 2"),
        (["loop.partial_rollouts=0.8", "method=grpo"], "loop.partial_rollouts: policy.learns_from is labeled"),
        (["critic.optimizer.learning_rate=0"], "critic.optimizer.learning_rate: 0 leaves the critic untaught"),
    ],
)
def test_settings_that_do_not_go_together_are_named(overrides: list[str], message: str, recipe: Path) -> None:
    """At start, not after hours."""
    try:
        problems = recipe_problems(load_config(recipe, overrides))
    except ValueError as error:
        problems = [str(error)]
    assert any(message in line for line in problems), problems


@pytest.mark.parametrize(
    "overrides",
    [
        ["policy.learns_from=labeled"],
        ["policy.learns_from=both"],
        ["policy.learns_from=labeled", "critic.training=returns"],
        ["method=ppo", "critic.optimizer.learning_rate=0"],
        ["method=tempo_reference_code"],
        ["method=frozen_critic", "critic.optimizer.learning_rate=1e-3"],
        ["method=empo", "loop.votes_per_prompt=8"],
        ["loop.partial_rollouts=0.8", *CORRECTED],
        ["method=tempo_reference_code", "loop.partial_rollouts=0.5", *CORRECTED],
    ],
)
def test_settings_that_can_learn_are_not_refused(overrides: list[str], recipe: Path) -> None:
    """TEMPO on labeled rows is rewarded by their correctness, so that its critic may learn returns; PPO's reward is
    right whatever its baseline is."""
    assert recipe_problems(load_config(recipe, overrides)) == []


def test_mini_batches_are_held_against_the_rollouts_that_are_cut(recipe: Path) -> None:
    """Those of a model or stage that is not used do not matter."""
    assert (
        recipe_problems(load_config(recipe, ["method=grpo", "loop.unlabeled_prompts=1", "critic.mini_batches=999"]))
        == []
    )
    (problem,) = recipe_problems(load_config(recipe, ["method=ppo", "loop.labeled_prompts=1", "policy.mini_batches=5"]))
    assert problem == "policy.mini_batches: 5 is more than the rollouts of loop.labeled_prompts"


def test_a_method_asks_only_for_the_data_that_it_uses(recipe: Path) -> None:
    """TTRL has no labeled questions, PPO no unlabeled ones."""
    assert recipe_problems(load_config(recipe, ["method=ttrl", "data.labeled=[]"])) == []
    assert recipe_problems(load_config(recipe, ["method=ppo", "data.unlabeled=[]"])) == []
