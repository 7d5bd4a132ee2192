"""A rank of test_checkpoints: a run that goes on while its checkpoints are written slowly, or fail to be written.

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
from tempo_megatron.megatron.checkpointing.saver import complete, resumable
from tempo_megatron.training.run import Run
from tests.clock import Clock
from tests.parallel.turns_worker import RESTS, advance, same, started, state


class SlowDisk:
    """Writes wait until they may go on."""

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
    return [path.name for path in complete(run.lifecycle.saver.directory)]


def written_while_the_run_goes_on(run: Run, disk: SlowDisk) -> dict[str, Any]:
    """Save, learn and rest on, and only then let the write go on; then load what was written."""
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
    """The disk of rank 1 is full: what the ranks are told, and what is left."""
    writer: Any = capture.FileSystemWriter
    write_data = writer.write_data

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on the disk of rank 1")

    if dist.get_rank() == 1:
        writer.write_data = full
    run.state.iteration += 1
    run.save()
    told = ""
    try:
        run.lifecycle.saver.wait()
    except Exception:
        told = traceback.format_exc()
    every = [""] * dist.get_world_size()
    dist.all_gather_object(every, told)
    left = iterations(run)
    writer.write_data = write_data
    run.save()
    run.lifecycle.saver.wait()
    return {"told": every, "complete_after_failure": left, "complete_at_last": iterations(run)}


def interruptions(run: Run) -> dict[str, Any]:
    """What is there after a run was interrupted at iterations 4 and 5 and has then saved 5 as it would have anyway."""
    there, said = [], []
    for run.state.iteration in (4, 5):
        run.lifecycle.begin_iteration(run.snapshot())
        said.append(run.lifecycle.save_interrupted())
        there.append([path.name for path in resumable(run.lifecycle.saver.directory)])
    run.save()
    said.append(run.lifecycle.save_interrupted())
    there.append([path.name for path in resumable(run.lifecycle.saver.directory)])
    return {"there_when_interrupted": there, "said_when_interrupted": said}


def seconds_of_a_slow_write(run: Run) -> dict[str, Any]:
    """How long a save took to the end of its writing, half a minute after it had let the run go on, and what the
    deadline then leaves room for."""
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
    run, _ = started((Path(path), overrides), "run", RESTS, "checkpoint.asynchronous=true", "checkpoint.keep=3")
    disk = SlowDisk()
    found = written_while_the_run_goes_on(run, disk)
    disk.repair()
    found |= failure_of_one_rank(run)
    found |= interruptions(run)
    found |= seconds_of_a_slow_write(run)
    counted = [0] * dist.get_world_size()
    dist.all_gather_object(counted, sum(map(dist_checkpoint.copied_bytes, run.models.trainers.values())))
    found["copied_bytes"] = sum(counted)
    if dist.get_rank() == 0:
        torch.save(found, Path(out))
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
