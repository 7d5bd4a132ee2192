"""Training alone, on what a run has generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def of_run(run: Path, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Recipe and overrides that train by a run's resolved config on the rollouts that it kept."""
    return str(run / "config.yaml"), [*overrides, f"generation.replay={run / 'rollouts'}"]
