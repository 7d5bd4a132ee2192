"""What `tempo plan` counts is what the loop does: rollouts, candidates, evaluations, and who has an optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tempo_megatron.cli import main
from tempo_megatron.megatron.checkpointing.saver import kept_iterations
from tempo_megatron.planning import host
from tempo_megatron.planning.parameters import parameters
from tempo_megatron.planning.phases import total
from tempo_megatron.planning.schedule import Load, Schedule
from tests.unit.planning.test_planning import ROOT, recipe_run

EIGHT = "qwen3_8b_math"
LOAD = Load.uniform(2048, 4096)


class Counted(Schedule):
    """Seconds of generating are the responses that are generated."""

    def generating(self, requests: int) -> float:
        return float(requests)


def counted(*overrides: str, load: Load = LOAD) -> Counted:
    return Counted(recipe_run(EIGHT, "loop.labeled_prompts=128", "loop.unlabeled_prompts=128", *overrides), load)


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
    """Further policy steps generate labeled rollouts of their own where they learn from them, and replaced prompts are
    generated again, half of them uniform in each round."""
    assert counted(*overrides).phases()["generate"] == 8 * prompts


def test_rounds_that_replace_prompts_wait_for_their_longest_response_each() -> None:
    """A call of a few prompts takes about as long as a call of many: that is what refills cost."""
    run = recipe_run(EIGHT, "loop.drop_uniform_prompts=true", "loop.refill_tries=3")
    replacing = Schedule(run, LOAD).phases()["generate"]
    mixed = Schedule(run, replace(LOAD, uniform_share=0.0)).phases()["generate"]
    assert replacing - mixed > Schedule(run, LOAD).generating(8 * 64)


@pytest.mark.parametrize(("keep", "every"), [(1, 0), (3, 0), (3, 16), (5, 8)])
def test_candidates_are_those_whose_checkpoints_are_kept(keep: int, every: int, tmp_path: Path) -> None:
    """As the saver keeps them, the best being the first."""
    schedule = counted(
        "loop.iterations=20", "checkpoint.every=4", f"checkpoint.keep={keep}", f"checkpoint.keep_every={every}"
    )
    assert schedule.saves == [0, 4, 8, 12, 16, 20]
    there: set[int] = set()
    for save, scored in zip(schedule.saves, schedule.candidates(), strict=True):
        assert scored == 1 + len(kept_iterations(tmp_path, keep - 1, 0, every)), save
        directory = tmp_path / f"iteration-{save:06d}"
        directory.mkdir()
        (directory / "state.json").touch()
        for old in there - kept_iterations(tmp_path, keep, 0, every):
            (tmp_path / f"iteration-{old:06d}" / "state.json").unlink(missing_ok=True)
        there.add(save)


def test_choosing_samples_every_candidate_and_reads_all_that_are_kept() -> None:
    """At each checkpoint and at the start, labeled questions, and unlabeled ones where a critic will value them; it
    reads old ones again."""
    asked = (
        "checkpoint.select_best=true",
        "calibration.questions=10",
        "checkpoint.selection_prompts=6",
        "loop.iterations=64",
    )
    alone = counted("method=ttrl", *asked).whole()
    assert alone["choosing the best"] == 5 * 10 * 4
    assert counted(*asked).whole()["choosing the best"] > 5 * (10 + 6) * 4
    assert "choosing the best" not in counted("checkpoint.select_best=false").whole()


def test_evaluations_between_the_ends_ask_fewer_questions_where_that_is_set() -> None:
    """100 iterations evaluate at 32, 64 and 96, of two sets."""
    asked = ("loop.iterations=100", "evaluation.every=32", "evaluation.samples=2", "evaluation.final_samples=3")
    assert counted(*asked).evaluating() == 2 * 300 * 3 + 3 * 300 * 2
    assert counted(*asked, "evaluation.questions=50").evaluating() == 2 * 300 * 3 + 3 * 2 * 50 * 2
    assert counted(*asked, "loop.iterations=0").evaluating() == 2 * 300 * 3


def test_a_frozen_critic_is_planned_without_an_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither pinned nor saved; one that the critic start teaches has it until then, and its checkpoints have none."""
    usual, frozen = recipe_run(EIGHT), recipe_run(EIGHT, "method=frozen_critic")
    assert "critic's optimizer" in host.pinned(usual) and "e_step" in usual.phases()
    assert "critic's optimizer" not in host.pinned(frozen) and "critic's weights" in host.pinned(frozen)
    assert "e_step" not in frozen.phases() and "critic start" not in Schedule(frozen, LOAD).whole()
    spared = 12 * parameters(usual.settings, "critic", 1, 1, 0).total
    assert host.checkpoint(usual) - host.checkpoint(frozen) == pytest.approx(spared, rel=1e-3)
    assert total(host.node(frozen)) < total(host.node(usual))

    taught = recipe_run(EIGHT, "method=frozen_critic", "stages.critic_start.iterations=2")
    assert "critic's optimizer" in host.pinned(taught) and "e_step" in taught.phases()
    assert host.checkpoint(taught) == host.checkpoint(frozen)
    assert Schedule(taught, LOAD).whole()["critic start"] > 0

    assert main(["plan", str(ROOT / "recipes" / f"{EIGHT}.yaml"), "method=frozen_critic"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| critic | ")]
    assert rows and all(row[4:] == ["0.00", "0.00 |"] and float(row[3]) >= 0 for row in rows)


def test_responses_that_only_vote_are_generated_and_not_learned_from() -> None:
    """TTRL's 64 votes a prompt, of which 32 train."""
    run = recipe_run(EIGHT, str(ROOT / "recipes" / "methods" / "ttrl.yaml"))
    planned = Schedule(run, Load.uniform(8192, 16384))
    assert (planned.labeled, planned.unlabeled, planned.learned) == (0, 8 * 64, 8 * 32)
    assert planned.phases()["generate"] == planned.generating(8 * 64)
