"""The cluster that these tests share, and how long they may take."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, running

BUDGET_SECONDS = 360.0
"""All tests of this directory share these seconds. Set-up that they share (cluster, model, environment) is extra."""


@pytest.fixture(scope="package")
def durations() -> list[float]:
    """Seconds of each test so far."""
    return []


@pytest.fixture(autouse=True)
def within_budget(durations: list[float]) -> Iterator[None]:
    """Warn from the test on that exceeds the budget. It is no failure: the speed of a machine says nothing about the
    code."""
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
