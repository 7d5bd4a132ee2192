"""A rank of test_checkpoints: a run goes on while its checkpoints are written slowly or cannot be written.

usage: checkpoint_worker.py RECIPE OUT [key=value ...]
"""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tempo_megatron.megatron import topology
from tempo_megatron.megatron.checkpointing import capture, dist_checkpoint, saver
from tempo_megatron.megatron.checkpointing.saver import checkpoint_directories, complete_checkpoints
from tempo_megatron.training.run import Run
from tests.clock import Clock
from tests.parallel.residency_worker import OFFLOADS, advance, same, started, state


class SlowDisk:
    """Stands in for the writer of checkpoints: a write waits until `goes_on` is set."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.written: list[str] = []
        self._write = capture.write
        self._module: Any = capture
        self._module.write = self.write

    def write(self, captured: Any, directory: Path, group: Any) -> None:
        assert self.goes_on.wait(120)
        self._write(captured, directory, group)
        self.written.append(f"{directory.parent.name}/{directory.name}")

    def repair(self) -> None:
        self._module.write = self._write


def iterations(run: Run) -> list[str]:
    return [path.name for path in complete_checkpoints(run.lifecycle.saver.directory)]


def written_while_the_run_goes_on(run: Run, disk: SlowDisk) -> dict[str, Any]:
    """Save, train on, and only then let the write go on; then load what was written."""
    list(advance(run, 1))
    at_save = state(run)
    run.save()
    before = iterations(run)
    list(advance(run, 1))
    moved_on = not same(state(run), at_save)
    done_before = list(disk.written)
    threading.Timer(0.5, disk.goes_on.set).start()
    run.save()
    after_next_save = list(disk.written)
    run.lifecycle.saver.wait()
    dist_checkpoint.load_checkpoint(run.lifecycle.saver.directory / "iteration-000001", run.models.trainers)
    return {
        "complete_at_first": before,
        "written_at_first": done_before,
        "written_when_the_next_was_saved": after_next_save[:2],
        "complete": iterations(run),
        "moved_on": moved_on,
        "same_state": same(state(run), at_save),
    }


def failure_of_one_rank(run: Run) -> dict[str, Any]:
    """What the ranks hear when the disk of rank 1 is full, and which checkpoints are left."""
    writer: Any = capture.FileSystemWriter
    write_data = writer.write_data

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on the disk of rank 1")

    if dist.get_rank() == 1:
        writer.write_data = full
    run.state.iteration += 1
    run.save()
    failure = ""
    try:
        run.lifecycle.saver.wait()
    except Exception:
        failure = traceback.format_exc()
    failures = [""] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    checkpoints_left = iterations(run)
    writer.write_data = write_data
    run.save()
    run.lifecycle.saver.wait()
    return {"told": failures, "complete_after_failure": checkpoints_left, "complete_at_last": iterations(run)}


def interruptions(run: Run) -> dict[str, Any]:
    """The checkpoints after interruptions at iterations 4 and 5, and after the regular save of iteration 5."""
    checkpoints, lines = [], []
    for run.state.iteration in (4, 5):
        run.lifecycle.begin_iteration(run.snapshot())
        lines.append(run.lifecycle.save_interrupted())
        checkpoints.append([path.name for path in checkpoint_directories(run.lifecycle.saver.directory)])
    run.save()
    lines.append(run.lifecycle.save_interrupted())
    checkpoints.append([path.name for path in checkpoint_directories(run.lifecycle.saver.directory)])
    return {"there_when_interrupted": checkpoints, "said_when_interrupted": lines}


def seconds_of_a_slow_write(run: Run) -> dict[str, Any]:
    """The seconds of a save whose writing ends half a minute after the run went on, and the lead that the deadline then
    keeps."""
    disk, clock = SlowDisk(), Clock()
    saver.time = clock
    run.save()
    clock.sleep(30)
    disk.goes_on.set()
    run.lifecycle.saver.wait()
    disk.repair()
    run.lifecycle.check_interruption()
    return {"save_seconds": run.lifecycle.saver.seconds, "lead": run.lifecycle.interruption.lead_seconds}


def main(path: str, out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    run, _ = started((Path(path), overrides), "run", OFFLOADS, "checkpoint.asynchronous=true", "checkpoint.keep=3")
    disk = SlowDisk()
    report = written_while_the_run_goes_on(run, disk)
    disk.repair()
    report |= failure_of_one_rank(run)
    report |= interruptions(run)
    report |= seconds_of_a_slow_write(run)
    counted = [0] * dist.get_world_size()
    dist.all_gather_object(counted, sum(map(dist_checkpoint.host_copy_bytes, run.models.trainers.values())))
    report["copied_bytes"] = sum(counted)
    if dist.get_rank() == 0:
        torch.save(report, Path(out))
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
