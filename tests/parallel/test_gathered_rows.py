"""Reports of rows reach every rank in the order of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("gathered_rows_worker.py")


@pytest.mark.parametrize(("ranks", "pipeline_size"), [(1, 1), (2, 1), (4, 2)])
def test_columns_equal_those_of_one_pass_over_all_rows(ranks: int, pipeline_size: int) -> None:
    """Columns lie in one storage, so a wrong offset would mix columns, and a wrong index would mix rows."""
    run_ranks(WORKER, ranks, pipeline_size)
