"""What a line of the log says about generation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tempo_megatron.config import Config
from tempo_megatron.run import Run


def test_a_generator_that_has_left_the_trainer_is_announced_and_logged() -> None:
    """Above the threshold alone, and only on lines that compare the two; what was generated is on every line."""
    said: list[str] = []
    run: Any = SimpleNamespace(
        config=Config(),
        generator=SimpleNamespace(take_figures=lambda: {"tokens": 7.0}),
        is_first=True,
        iteration=3,
        say=said.append,
    )
    assert Run._generation_figures(run, {}) == {"generation/tokens": 7.0}
    alarms = []
    for difference in (1.0, 1.05, 1.06):
        found = Run._generation_figures(run, {"generation/exp_log_prob_difference_mean": difference})
        assert found.pop("generation/tokens") == 7.0
        alarms.append(found)
    assert alarms == [{"generation/log_prob_alarm": alarm} for alarm in (0.0, 0.0, 1.0)]
    assert len(said) == 1 and "iteration 3" in said[0] and "1.0600" in said[0]
