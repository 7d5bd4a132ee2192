"""A rank of test_checkpoints: a run that continues while its checkpoints are written slowly, or fail to be written.

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
from tempo_megatron.megatron.checkpointing.saver import complete_checkpoints, resumable_checkpoints
from tempo_megatron.training.run import Run
from tests.clock import Clock
from tests.parallel.turns_worker import OFFLOADS, advance, same, started, state


class SlowDisk:
    """Blocks writes until `may_write` is set."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self.written: list[str] = []
        self._write = capture.write
        self._module: Any = capture
        self._module.write = self.write

    def write(self, captured: Any, directory: Path, group: Any) -> None:
        assert self.may_write.wait(120)
        self._write(captured, directory, group)
        self.written.append(f"{directory.parent.name}/{directory.name}")

    def repair(self) -> None:
        self._module.write = self._write


def iterations(run: Run) -> list[str]:
    return [path.name for path in complete_checkpoints(run.lifecycle.saver.directory)]


def written_while_the_run_continues(run: Run, disk: SlowDisk) -> dict[str, Any]:
    """Saves, learns and offloads while the write is blocked, then lets it continue and loads its checkpoint."""
    list(advance(run, 1))
    at_save = state(run)
    run.save()
    before = iterations(run)
    list(advance(run, 1))
    has_learned = not same(state(run), at_save)
    written_before = list(disk.written)
    threading.Timer(0.5, disk.may_write.set).start()
    run.save()
    after_next_save = list(disk.written)
    run.lifecycle.saver.wait()
    dist_checkpoint.load_checkpoint(run.lifecycle.saver.directory / "iteration-000001", run.models.trainers)
    return {
        "complete_at_first": before,
        "written_at_first": written_before,
        "written_when_the_next_was_saved": after_next_save[:2],
        "complete": iterations(run),
        "moved_on": has_learned,
        "same_state": same(state(run), at_save),
    }


def failure_of_one_rank(run: Run) -> dict[str, Any]:
    """The disk of rank 1 is full. Returns the errors of all ranks and the remaining checkpoints."""
    writer: Any = capture.FileSystemWriter
    write_data = writer.write_data

    def raise_disk_full(*args: Any) -> None:
        raise OSError(28, "No space left on the disk of rank 1")

    if dist.get_rank() == 1:
        writer.write_data = raise_disk_full
    run.state.iteration += 1
    run.save()
    error = ""
    try:
        run.lifecycle.saver.wait()
    except Exception:
        error = traceback.format_exc()
    errors = [""] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    remaining = iterations(run)
    writer.write_data = write_data
    run.save()
    run.lifecycle.saver.wait()
    return {"errors": errors, "complete_after_failure": remaining, "complete_at_last": iterations(run)}


def interruptions(run: Run) -> dict[str, Any]:
    """Returns the checkpoints of a run that is interrupted at iterations 4 and 5, and then saves 5 regularly."""
    checkpoints, messages = [], []
    for run.state.iteration in (4, 5):
        run.lifecycle.begin()
        messages.append(run.lifecycle.save_interrupted())
        checkpoints.append([path.name for path in resumable_checkpoints(run.lifecycle.saver.directory)])
    run.save()
    messages.append(run.lifecycle.save_interrupted())
    checkpoints.append([path.name for path in resumable_checkpoints(run.lifecycle.saver.directory)])
    return {"checkpoints_when_interrupted": checkpoints, "messages_when_interrupted": messages}


def seconds_of_a_slow_write(run: Run) -> dict[str, Any]:
    """Returns the duration of a save whose write takes 30 s in the background, and the time reserved before the
    deadline."""
    disk, clock = SlowDisk(), Clock()
    saver.time = clock
    run.save()
    clock.sleep(30)
    disk.may_write.set()
    run.lifecycle.saver.wait()
    disk.repair()
    run.lifecycle.check_interruption()
    return {"save_seconds": run.lifecycle.saver.seconds, "lead": run.lifecycle.interruption.lead_seconds}


def main(path: str, out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    run, _ = started((Path(path), overrides), "run", OFFLOADS, "checkpoint.asynchronous=true", "checkpoint.keep=3")
    disk = SlowDisk()
    report = written_while_the_run_continues(run, disk)
    disk.repair()
    report |= failure_of_one_rank(run)
    report |= interruptions(run)
    report |= seconds_of_a_slow_write(run)
    copied_bytes = [0] * dist.get_world_size()
    dist.all_gather_object(copied_bytes, sum(map(dist_checkpoint.host_copy_bytes, run.trainers.values())))
    report["copied_bytes"] = sum(copied_bytes)
    if dist.get_rank() == 0:
        torch.save(report, Path(out))
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
