"""Alarms go off for what they name, and a healthy run has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.report.alarms import Alarm, alarms
from tempo_megatron.report.outcome import changes
from tempo_megatron.report.reading import read_run
from tests.unit.report.run_copy import copy_run, new_run, train_rows

ROLLOUTS = "evaluation__unlabeled_rollouts"
HEALTHY: dict[str, Any] = {
    f"{ROLLOUTS}__avg": [0.5] * 12,
    "critic__auroc_within_prompts": [0.8] * 12,
    f"{ROLLOUTS}__reward_minus_truth": [0.02] * 12,
    f"{ROLLOUTS}__reward_auroc": [0.8] * 12,
    "policy__truncated": [0.01] * 12,
    "policy__entropy": [0.5] * 12,
    "policy__gate_open": [1.0] * 12,
    "policy__skipped_updates": [0.0] * 12,
    "generation__log_prob_alarm": [0.0] * 12,
    "policy__noise_alarm": [0.0] * 12,
    "grading__errors": [0.0] * 12,
}


def alarms_of(run: Path) -> list[Alarm]:
    """Return the alarms of a run directory."""
    record = read_run(run)
    return alarms(record, changes(record))


def test_a_healthy_run_has_no_alarm(tmp_path: Path) -> None:
    assert alarms_of(new_run(tmp_path / "run", train_rows(**HEALTHY))) == []


@pytest.mark.parametrize(
    ("metric", "values", "title", "words"),
    [
        ("critic__auroc_within_prompts", [0.8] * 2 + [0.5] * 10, "The critic cannot tell right from wrong", "50%"),
        (f"{ROLLOUTS}__avg", [0.5] * 2 + [0.01] * 10, "Almost no response is right", "1.0% of the responses"),
        (f"{ROLLOUTS}__avg", [0.5] * 2 + [0.99] * 10, "Almost every response is right", "99.0% of the responses"),
        (f"{ROLLOUTS}__reward_minus_truth", [0.0] * 2 + [0.3] * 10, "The reward promises more than is true", "+30.0"),
        (f"{ROLLOUTS}__reward_auroc", [0.8] * 2 + [0.4] * 10, "The reward does not favor right responses", "40%"),
        ("policy__truncated", [0.0] * 2 + [0.5] * 10, "Many responses are cut off", "50% of the policy's responses"),
        ("policy__entropy", [1.0] * 2 + [0.1] * 10, "The policy hardly varies its responses", "from 1.000 to 0.100"),
        ("policy__gate_open", [0.0] * 2 + [1.0] * 10, "The gate kept the policy from learning", "2 iterations"),
        ("policy__skipped_updates", [1.0] * 2 + [0.0] * 10, "Updates of the policy were skipped", "2 updates"),
        ("generation__log_prob_alarm", [0.0] * 11 + [1.0], "Generator and trainer disagree", "In iteration 12"),
        ("policy__noise_alarm", [1.0] * 12, "Rounding decides which tokens learn", "In 12 iterations, from 1 to 12"),
        ("grading__errors", [0.0] * 11 + [3.0], "The grader failed on some responses", "3 responses"),
    ],
)
def test_each_alarm_is_in_words(tmp_path: Path, metric: str, values: list[float], title: str, words: str) -> None:
    """Judgments of the end take the last ten iterations alone."""
    (alarm,) = alarms_of(new_run(tmp_path / "run", train_rows(**HEALTHY | {metric: values})))
    assert alarm.title == title and words in alarm.text


def test_a_diverged_run_says_which_metric_was_the_first(tmp_path: Path) -> None:
    """Curves leave out what is not finite, so nothing else would tell."""
    nan, inf = float("nan"), float("inf")
    rows = HEALTHY | {"critic__loss": [0.5] * 11 + [nan], "policy__loss": [0.5] * 10 + [inf, nan]}
    (alarm,) = alarms_of(new_run(tmp_path / "run", train_rows(**rows)))
    assert alarm.title == "Metrics are not finite" and alarm.serious
    assert alarm.text.startswith("2 metrics became NaN or infinite: policy/loss in iteration 11 was the first.")


def test_a_shuffled_critic_is_the_first_thing_to_see(tmp_path: Path) -> None:
    """And its effects are seen without the setting too."""
    shown = alarms_of(copy_run(tmp_path / "run"))
    assert all(alarm.serious for alarm in shown)
    assert [alarm.title for alarm in shown] == [
        "The critic's labels were shuffled",
        "The critic cannot tell right from wrong",
        "The reward does not favor right responses",
        "Accuracy fell on unlabeled questions",
    ]
