"""Alarms about an iteration's arithmetic."""

from __future__ import annotations

import pytest

from tempo_megatron.config import Config
from tempo_megatron.metrics.alarms import arithmetic_alarms


@pytest.mark.parametrize(("difference", "alarm"), [(1.0, 0.0), (1.05, 0.0), (1.051, 1.0)])
def test_a_generator_that_leaves_the_trainer_is_named(difference: float, alarm: float) -> None:
    """Above the limit the log has 1 and the run says what is too far, and what the limit is."""
    figures, lines = arithmetic_alarms({"generation/exp_log_prob_difference_mean": difference}, Config())
    assert figures == {"generation/log_prob_alarm": alarm}
    assert [all(part in line for part in ("1.0510", "generation.log_prob_alarm 1.05")) for line in lines] == [
        True
    ] * int(alarm)


@pytest.mark.parametrize(("deviation", "alarm"), [(0.0, 0.0), (8e-5, 0.0), (1e-4, 1.0)])
def test_noise_is_measured_against_the_nearer_clip(deviation: float, alarm: float) -> None:
    """GSPO's clip is 3e-4 below and 5e-4 above: noise of a third of 3e-4 decides what is clipped."""
    figures, lines = arithmetic_alarms({"policy/first_ratio_deviation": deviation}, Config())
    assert figures == {"policy/noise_to_clip": pytest.approx(deviation / 3e-4), "policy/noise_alarm": alarm}
    assert len(lines) == alarm


@pytest.mark.parametrize("figure", ["generation/exp_log_prob_difference_mean", "policy/first_ratio_deviation"])
def test_what_is_not_a_number_raises_its_alarm(figure: str) -> None:
    """Every comparison with NaN is false: the worst figure there is would raise nothing."""
    figures, lines = arithmetic_alarms({figure: float("nan")}, Config())
    assert [value for name, value in figures.items() if name.endswith("_alarm")] == [1.0]
    assert len(lines) == 1 and "nan" in lines[0]


def test_an_iteration_without_a_policy_step_raises_nothing() -> None:
    assert arithmetic_alarms({"critic/loss": 1.0}, Config()) == ({}, [])


def test_updates_whose_tokens_were_all_rejected_are_told() -> None:
    """Otherwise a run with bounds that are too narrow ends well and has learned nothing."""
    figures, lines = arithmetic_alarms({"policy/rejected_updates": 3.0}, Config())
    assert figures == {} and len(lines) == 1 and lines[0].startswith("3 updates were not made")
    assert arithmetic_alarms({"policy/rejected_updates": 0.0}, Config()) == ({}, [])
