"""The cluster that these tests share, and the repository as somebody who submits sees it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, running


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, both idle; skipped with the reason where Slurm is not installed."""
    reason = missing()
    if reason:
        pytest.skip(f"a Slurm cluster {reason}")
    directory: Path = tmp_path_factory.mktemp("slurm")
    with running(directory) as made:
        yield made
