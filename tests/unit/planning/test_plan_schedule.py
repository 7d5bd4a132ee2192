"""`tempo plan` counts what the loop does: rollouts, candidates, evaluations and optimizer states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tempo_megatron.cli import main
from tempo_megatron.megatron.checkpointing.saver import kept_iterations
from tempo_megatron.planning import host, rates
from tempo_megatron.planning.parameters import rank_parameters
from tempo_megatron.planning.phases import total_bytes
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload
from tests.unit.planning.test_planning import ROOT, recipe_run

RECIPE = "qwen3_8b_math"
WORKLOAD = Workload.uniform(2048, 4096)


class CountingSchedule(Schedule):
    """Counts generated responses instead of seconds."""

    def generate_seconds(self, requests: int) -> float:
        return float(requests)


def counting_schedule(*overrides: str, workload: Workload = WORKLOAD) -> CountingSchedule:
    return CountingSchedule(
        recipe_run(RECIPE, "loop.labeled_prompts=128", "loop.unlabeled_prompts=128", *overrides), workload
    )


@pytest.mark.parametrize(
    ("overrides", "prompts"),
    [
        ([], 128 + 128),
        (["loop.e_steps=2", "loop.m_steps=3"], 2 * 128 + 3 * 128),
        (["policy.learns_from=both", "loop.m_steps=3"], 3 * (128 + 128)),
        (["policy.learns_from=both", "loop.m_steps=3", "loop.e_steps=2"], (2 + 1) * 128 + 2 * (128 + 128)),
        (["method=grpo", "loop.m_steps=2"], 2 * 128),
        (["method=frozen_critic"], 128),
        (["loop.drop_uniform_prompts=true", "loop.refill_tries=2"], 128 + 128 + 64 + 32),
        (["loop.drop_uniform_prompts=true"], 128 + 128 + 127),
    ],
)
def test_every_rollout_of_an_iteration_is_counted(overrides: list[str], prompts: int) -> None:
    """Further policy steps generate their own labeled rollouts if they learn from them.

    Replaced prompts are generated again. Half of the prompts are uniform in each round. The seconds and the tokens of
    an iteration are those of the same rollouts.
    """
    schedule = counting_schedule(*overrides)
    assert schedule.phase_seconds()["generate"] == 8 * prompts
    assert schedule.rollouts.generated(WORKLOAD.uniform_share) == 8 * prompts


def test_each_refill_round_waits_for_its_longest_response() -> None:
    """A call for few prompts takes about as long as a call for many, which makes refills expensive."""
    run = recipe_run(RECIPE, "loop.drop_uniform_prompts=true", "loop.refill_tries=3")
    with_refills = Schedule(run, WORKLOAD).phase_seconds()["generate"]
    without_refills = Schedule(run, replace(WORKLOAD, uniform_share=0.0)).phase_seconds()["generate"]
    assert with_refills - without_refills > Schedule(run, WORKLOAD).generate_seconds(8 * 64)


def test_exact_numerics_change_the_speeds_of_generator_and_policy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The critic keeps its own speed. The speeds here are unlike each other, and unlike 1."""
    monkeypatch.setattr(rates, "EXACT_SPEED", {"rollout": 0.8, "pass": 0.9, "step": 0.7})
    default, exact = (
        Schedule(recipe_run(RECIPE, f"numerics={numerics}"), WORKLOAD).phase_seconds()
        for numerics in ("default", "exact")
    )
    assert exact["generate"] == pytest.approx(default["generate"] / 0.8)
    assert exact["m_step"] == pytest.approx(default["m_step"] / 0.7, rel=0.05)
    assert exact["advantages"] > default["advantages"]
    for phase in ("e_step", "sync"):
        assert exact[phase] == default[phase]


@pytest.mark.parametrize(("keep", "every"), [(1, 0), (3, 0), (3, 16), (5, 8)])
def test_candidates_are_those_whose_checkpoints_are_kept(keep: int, every: int, tmp_path: Path) -> None:
    """The saver keeps the same checkpoints. The best one is the first."""
    schedule = counting_schedule(
        "loop.iterations=20", "checkpoint.every=4", f"checkpoint.keep={keep}", f"checkpoint.keep_every={every}"
    )
    assert schedule.save_iterations == [0, 4, 8, 12, 16, 20]
    present: set[int] = set()
    for iteration, candidates in zip(schedule.save_iterations, schedule.candidate_counts(), strict=True):
        assert candidates == 1 + len(kept_iterations(tmp_path, keep - 1, 0, every)), iteration
        directory = tmp_path / f"iteration-{iteration:06d}"
        directory.mkdir()
        (directory / "state.json").touch()
        for old in present - kept_iterations(tmp_path, keep, 0, every):
            (tmp_path / f"iteration-{old:06d}" / "state.json").unlink(missing_ok=True)
        present.add(iteration)


def test_selection_samples_every_candidate_and_scores_all_that_are_kept() -> None:
    """Each checkpoint and the start sample labeled questions, and unlabeled ones if a critic scores them. The critic
    scores old candidates again."""
    overrides = (
        "checkpoint.select_best=true",
        "calibration.questions=10",
        "checkpoint.selection_prompts=6",
        "loop.iterations=64",
    )
    without_critic = counting_schedule("method=ttrl", *overrides).run_seconds()
    assert without_critic["choosing the best"] == 5 * 10 * 4
    assert counting_schedule(*overrides).run_seconds()["choosing the best"] > 5 * (10 + 6) * 4
    assert "choosing the best" not in counting_schedule("checkpoint.select_best=false").run_seconds()


def test_evaluations_between_the_ends_ask_fewer_questions_where_that_is_set() -> None:
    """100 iterations are evaluated at 32, 64 and 96, on two sets."""
    overrides = ("loop.iterations=100", "evaluation.every=32", "evaluation.samples=2", "evaluation.final_samples=3")
    assert counting_schedule(*overrides).evaluation_seconds() == 2 * 300 * 3 + 3 * 300 * 2
    assert counting_schedule(*overrides, "evaluation.questions=50").evaluation_seconds() == 2 * 300 * 3 + 3 * 2 * 50 * 2
    assert counting_schedule(*overrides, "loop.iterations=0").evaluation_seconds() == 2 * 300 * 3


def test_a_frozen_critic_is_planned_without_an_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    """Its optimizer is neither pinned nor saved. A critic start needs the optimizer, but its checkpoints have none."""
    usual, frozen = recipe_run(RECIPE), recipe_run(RECIPE, "method=frozen_critic")
    assert "critic's optimizer" in host.pinned_memory(usual) and "e_step" in usual.phase_memory()
    assert "critic's optimizer" not in host.pinned_memory(frozen) and "critic's weights" in host.pinned_memory(frozen)
    assert "e_step" not in frozen.phase_memory() and "critic start" not in Schedule(frozen, WORKLOAD).run_seconds()
    optimizer_bytes = 12 * rank_parameters(usual.settings, "critic", 1, 1, 0).total
    assert host.checkpoint_bytes(usual) - host.checkpoint_bytes(frozen) == pytest.approx(optimizer_bytes, rel=1e-3)
    assert total_bytes(host.node_memory(frozen)) < total_bytes(host.node_memory(usual))

    trained_at_start = recipe_run(RECIPE, "method=frozen_critic", "stages.critic_start.iterations=2")
    assert "critic's optimizer" in host.pinned_memory(trained_at_start) and "e_step" in trained_at_start.phase_memory()
    assert host.checkpoint_bytes(trained_at_start) == host.checkpoint_bytes(frozen)
    assert Schedule(trained_at_start, WORKLOAD).run_seconds()["critic start"] > 0

    assert main(["plan", str(ROOT / "recipes" / f"{RECIPE}.yaml"), "method=frozen_critic"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| critic | ")]
    assert rows and all(row[4:] == ["0.00", "0.00 |"] and float(row[3]) >= 0 for row in rows)


def test_responses_that_only_vote_are_generated_but_not_trained_on() -> None:
    """TTRL has 64 votes per prompt, of which 32 train."""
    run = recipe_run(RECIPE, str(ROOT / "recipes" / "methods" / "ttrl.yaml"))
    schedule = Schedule(run, Workload.uniform(8192, 16384))
    rollouts = schedule.rollouts
    assert (rollouts.labeled, rollouts.unlabeled, rollouts.trained) == (0, 8 * 64, 8 * 32)
    assert schedule.phase_seconds()["generate"] == schedule.generate_seconds(8 * 64)
