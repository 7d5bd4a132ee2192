"""The simulated end of generation with partial rollouts, and the plan that uses it."""

from __future__ import annotations

import pytest

from tempo_megatron.config import Config, LoopConfig
from tempo_megatron.planning import report, shapes
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.partial_rollouts import steps_until_paused
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload

SKEWED = Workload((*[500] * 12, 1000, 2000, 3000, 4000), prompt=128)


def steps(workload: Workload, share: float, samples: int = 1, staleness: int = 1) -> float:
    settings = {"samples_per_prompt": samples, "partial_rollouts": share, "staleness": staleness}
    return steps_until_paused(LoopConfig(unlabeled_prompts=64, **settings), workload)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_equally_long_responses_save_nothing(share: float) -> None:
    """Half of them in flight makes a call of no steps, which learns from what the call before completed."""
    assert steps(Workload((900,)), share) == (450.0 if share == 0.5 else 900.0)


def test_the_steps_fall_with_the_share_and_rise_with_the_size_of_groups() -> None:
    """A group ends with its longest response. The saving is between none and all that the longest takes."""
    shares = [steps(SKEWED, share) for share in (0.95, 0.8, 0.65)]
    assert 4000 > shares[0] > shares[1] > 500
    assert steps(SKEWED, 0.65, samples=4) < steps(SKEWED, 0.65, samples=16) <= 4000


def test_a_larger_bound_on_age_waits_less() -> None:
    """Of single responses of which few are long, those that are carried over must finish at once with a bound of 1."""
    assert steps(SKEWED, 0.8, staleness=3) < steps(SKEWED, 0.8, staleness=1)


def planned(*, labeled: bool, share: float) -> Schedule:
    config = Config(method="tempo" if labeled else "frozen_critic")
    config.critic.training = type(config.critic.training)("calibrated" if labeled else "frozen")
    config.loop.partial_rollouts = share
    config.generation.max_response_tokens, config.generation.max_num_seqs = 4096, 1024
    backbone = shapes.backbone_shape(shapes.shape_config("qwen3-1.7b", None, None))
    return Schedule(PlannedRun(backbone, config, Machine(1, 8, 141.0, 1000.0)), SKEWED)


def test_the_plan_of_generation_ends_earlier_unless_labeled_rollouts_wait() -> None:
    """Labeled rollouts always finish, so that a call with any of them is planned as before."""
    assert planned(labeled=True, share=0.65).phase_seconds() == planned(labeled=True, share=0.0).phase_seconds()
    waiting, pausing = (planned(labeled=False, share=share).phase_seconds() for share in (0.0, 0.65))
    assert pausing["generate"] < waiting["generate"]
    assert {**pausing, "generate": 0.0} == {**waiting, "generate": 0.0}


def test_the_plan_says_what_partial_rollouts_are_expected_to_save() -> None:
    """With the prompts in flight, the last step, and the reservation about labeled rollouts."""
    text = report.format_plan(planned(labeled=False, share=0.65).run, SKEWED, [], [])
    assert "197 prompts are in flight" in text and "steps of at most 4,000" in text
    assert "Partial rollouts" not in report.format_plan(planned(labeled=False, share=0.0).run, SKEWED, [], [])
