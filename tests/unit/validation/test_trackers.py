"""Trackers that cannot log are refused at start, not after hours."""

from __future__ import annotations

import pytest

from tempo_megatron.config import Config, TrackerMode
from tempo_megatron.validation import recipe


def problems(**modes: TrackerMode) -> list[str]:
    """Return the problems of a recipe with these trackers, as far as they are about logging."""
    config = Config()
    for name, mode in modes.items():
        setattr(config.logging, name, mode)
    return [line for line in recipe.recipe_problems(config) if line.startswith("logging.")]


def test_a_tracker_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of a server is a matter of the rank that logs, which can do without."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    assert problems() == []
    assert problems(wandb=TrackerMode.offline, mlflow=TrackerMode.online) == [
        "logging.wandb: the package wandb is not installed",
        "logging.mlflow: the packages of the extra mlflow are not installed",
    ]
    monkeypatch.setattr(recipe, "find_spec", lambda name: object())
    assert problems(wandb=TrackerMode.online, mlflow=TrackerMode.online) == []
