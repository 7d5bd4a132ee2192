"""The cluster that these tests share, and the repository as somebody who submits sees it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, running

BUDGET_SECONDS = 360.0
"""for all tests of this directory together; what they share (cluster, model, environment) is not counted"""


@pytest.fixture(scope="package")
def durations() -> list[float]:
    """Seconds of each test so far."""
    return []


@pytest.fixture(autouse=True)
def within_budget(durations: list[float]) -> Iterator[None]:
    """Warns from the test on that goes past the budget: how fast a machine is says nothing of what a test protects."""
    begun = time.monotonic()
    yield
    durations.append(time.monotonic() - begun)
    spent = sum(durations)
    if spent > BUDGET_SECONDS:
        warnings.warn(f"the Slurm tests have taken {spent:.0f} s, and share {BUDGET_SECONDS:.0f} s", stacklevel=1)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, both idle; skipped with the reason where Slurm is not installed."""
    reason = missing()
    if reason:
        pytest.skip(f"a Slurm cluster {reason}")
    directory: Path = tmp_path_factory.mktemp("slurm")
    with running(directory) as started:
        yield started
