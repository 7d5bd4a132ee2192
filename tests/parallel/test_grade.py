"""Grades that ranks share. Run as a script, this file is one of the ranks."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from tests.parallel.launcher import run_ranks
from tests.unit.training.test_evaluate import check_shared_grades


def test_each_row_is_graded_on_one_rank_and_all_ranks_agree() -> None:
    """A grader's time-out must not make ranks differ: no rank grades the rows of another, and all count the same."""
    assert run_ranks(Path(__file__), 3).count("agreed") == 3


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check_shared_grades(dist.get_rank(), dist.get_world_size())
    print("agreed")
    dist.destroy_process_group()
