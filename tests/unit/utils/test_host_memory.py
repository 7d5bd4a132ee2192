"""Limits of host memory by cgroups, and the peak of a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tempo_megatron.utils import host_memory

GIB = 2**30


def write(directory: Path, **values: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (directory / f"memory.{name}").write_text(f"{value}\n")


@pytest.fixture
def process(tmp_path: Path) -> Path:
    (tmp_path / "process").mkdir()
    return tmp_path / "process"


def test_a_slurm_jobs_limit_holds_for_the_task_within_it(tmp_path: Path, process: Path) -> None:
    """In cgroup v2 the task's group has no limit, its job's group has one, and the node's limit is larger."""
    (process / "cgroup").write_text("0::/slurm/job_7/task_0\n")
    write(tmp_path / "slurm" / "job_7" / "task_0", max="max", current=0)
    write(tmp_path / "slurm" / "job_7", max=3 * GIB, current=GIB)
    write(tmp_path / "slurm", max=4 * GIB, current=2 * GIB)
    total, free = host_memory.total_and_free(tmp_path, process)
    assert total == 3 * GIB and 0 < free <= 2 * GIB


def test_limits_of_cgroup_v1_count_too(tmp_path: Path, process: Path) -> None:
    (process / "cgroup").write_text("5:cpu,cpuacct:/slurm/job_7\n4:memory:/slurm/job_7\n0::/\n")
    write(tmp_path / "memory" / "slurm" / "job_7", limit_in_bytes=2 * GIB, usage_in_bytes=GIB)
    write(tmp_path / "memory", limit_in_bytes=2**63 - 4096, usage_in_bytes=GIB)
    total, free = host_memory.total_and_free(tmp_path, process)
    assert total == 2 * GIB and free == GIB


@pytest.mark.parametrize("name", ["inactive_file", "total_inactive_file"])
def test_files_that_the_kernel_would_drop_are_free(name: str, tmp_path: Path, process: Path) -> None:
    """Cached files are many after a job has written a checkpoint and starts the next run."""
    (process / "cgroup").write_text("0::/\n")
    write(tmp_path, max=2 * GIB, current=2 * GIB, stat=f"anon 5\n{name} {GIB}")
    assert host_memory.total_and_free(tmp_path, process) == (2 * GIB, GIB)


def test_a_limit_of_the_topmost_visible_group_counts(tmp_path: Path, process: Path) -> None:
    (process / "cgroup").write_text("0::/\n")
    write(tmp_path, max=GIB, current=2 * GIB)
    assert host_memory.total_and_free(tmp_path, process) == (GIB, 0)


def test_without_limits_the_machines_memory_is_returned(tmp_path: Path, process: Path) -> None:
    total, free = host_memory.total_and_free(tmp_path, process)
    assert total > free > 0


def test_a_peak_counts_until_it_is_reset() -> None:
    """Half a GiB that was allocated and freed raises the peak."""
    host_memory.reset_peak()
    before = host_memory.peak_bytes()
    torch.ones(GIB // 2, dtype=torch.uint8)
    during = host_memory.peak_bytes()
    assert during - before > GIB // 3
    host_memory.reset_peak()
    assert host_memory.peak_bytes() < during - GIB // 3
