"""The lines of metrics.jsonl: names of the generator's figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tempo_megatron.config import Config
from tempo_megatron.training.reporting import Console, RunLog
from tempo_megatron.training.state import RunState


def test_timings_of_the_generator_have_the_prefix_of_timings() -> None:
    """What compares two runs leaves out `seconds/`; counts of the generator must be the same."""
    lines: list[dict[str, Any]] = []
    figures = {"requests": 3.0, "seconds/replica_idle": 0.25}
    parts: dict[str, Any] = {
        "residency": SimpleNamespace(take_usage=dict),
        "generator": SimpleNamespace(take_figures=lambda: figures),
        "writers": SimpleNamespace(write=lines.append),
    }
    log = RunLog(Config(), Console(is_first=False), RunState(), **parts)
    log.write("train", {}, 2)
    assert lines == [{"stage": "train", "iteration": 2, "generation/requests": 3.0, "seconds/replica_idle": 0.25}]
