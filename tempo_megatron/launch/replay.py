"""Training without a generator, on the rollouts that a run kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def replay_arguments(run: Path, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Return the recipe and overrides that train by a run's own config on the rollouts that it kept."""
    return str(run / "config.yaml"), [*overrides, f"generation.replay={run / 'rollouts'}"]
