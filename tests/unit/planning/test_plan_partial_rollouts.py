"""The simulated end of generation with partial rollouts, and the plan that uses it."""

from __future__ import annotations

from statistics import fmean

import pytest

from tempo_megatron.config import Config, LoopConfig
from tempo_megatron.planning import rates, report, shapes
from tempo_megatron.planning.flops import ModelFlops
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.partial_rollouts import PartialCall, simulate_calls, typical_calls
from tempo_megatron.planning.phases import PlannedRun
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload

SKEWED = Workload((*[500] * 12, 1000, 2000, 3000, 4000), prompt=128)


def steps(workload: Workload, share: float, samples: int = 1, staleness: int = 1) -> float:
    settings = {"samples_per_prompt": samples, "partial_rollouts": share, "staleness": staleness}
    calls = typical_calls(LoopConfig(unlabeled_prompts=64, **settings), workload)
    return fmean(call.steps for call in calls)


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


def test_calls_by_hand() -> None:
    """Steps, tokens and continued responses of each call, where the bound of 1 makes the third call wait."""
    loop = LoopConfig(unlabeled_prompts=1, partial_rollouts=0.5, staleness=1)
    calls = list(simulate_calls([(3, 5), (9, 2), (4, 4), (1, 1)], loop))
    assert calls == [
        PartialCall(steps=5, tokens=8 + 5 + 2, resumed=0, resumed_tokens=0),  # (4, 0) is left of the second group
        PartialCall(steps=4, tokens=4 + 4 + 4, resumed=1, resumed_tokens=5),  # both end, the older one trains
        PartialCall(steps=0, tokens=0, resumed=0, resumed_tokens=0),  # the third group trains, the fourth has not begun
    ]


def test_the_plan_of_a_call_counts_what_is_read_again() -> None:
    """A sync empties the prefix cache, so a continued response's tokens pass the model once more."""
    schedule = planned(labeled=False, share=0.65)
    fresh, resumed = PartialCall(1000, 60_000, 0, 0), PartialCall(1000, 60_000, 100, 100_000)
    flops = 100 * ModelFlops(schedule.run.settings, "policy").forward([1000])
    added = schedule.partial_call_seconds(resumed) - schedule.partial_call_seconds(fresh)
    assert added == pytest.approx(flops / rates.PASS_FLOPS["policy", False] / 8)
    assert schedule.partial_call_seconds(PartialCall(0, 0, 0, 0)) == 0.0


def test_the_plan_is_the_mean_of_calls_that_differ() -> None:
    """One measured call cannot be compared with it."""
    schedule = planned(labeled=False, share=0.65)
    seconds = [schedule.partial_call_seconds(call) for call in typical_calls(schedule.run.config.loop, SKEWED)]
    assert schedule.partial_generate_seconds() == pytest.approx(fmean(seconds))
    assert max(seconds) > min(seconds)


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
