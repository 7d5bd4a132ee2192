"""Writes the checkpoints of a run, and decides which are kept and which one the run resumes from.

`integrity.py` decides whether a checkpoint is damaged, `metrics/checkpoint_choice.py` which one is the best.
"""

from __future__ import annotations

import atexit
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tempo_megatron.config import CheckpointConfig
from tempo_megatron.conversion import hf_files
from tempo_megatron.megatron.checkpointing import dist_checkpoint
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.utils.distributed import broadcast_from_first, rank_and_ranks

if TYPE_CHECKING:
    from tempo_megatron.megatron.checkpointing.capture import Captured

REFERENCE = "reference"
"""The directory of the reference model's weights, which never change."""
_STATE = "state.json"
_BEST = "best"
_EXIT_WAIT_SECONDS = 20.0
"""A rank that exits waits this long for a write that is under way."""
WARM_START, CRITIC_START, ITERATION = _STAGES = ("warm_start", "critic_start", "iteration")
_PREFIX, _INTERIM, _DAMAGED = f"{ITERATION}-", "interim-", "damaged-"
_NAME = re.compile(rf"({ITERATION}|{_INTERIM}({'|'.join(_STAGES)}))-\d{{6,}}")


class NoUsableCheckpoint(RuntimeError):
    """All checkpoints of a run are damaged or incomplete."""


@dataclass(frozen=True)
class Position:
    """The progress of a run: the completed steps of a stage before the first iteration, or the completed iterations."""

    stage: str
    completed: int

    def __str__(self) -> str:
        return f"{self.stage}-{self.completed:06d}"


class Saver:
    """Writes the checkpoints of a run into `directory`, one at a time.

    A checkpoint such as `iteration-000020/` has one directory per model, the model's description
    (`format.write_description`) and `state.json`, the rest of the state that the loop resumes from. The description is
    copied from `hf_path` for the first checkpoint, then from the previous checkpoint.

    Interim checkpoints (`interim-iteration-000023/`, `interim-critic_start-000004/`) exist for resumption alone. The
    next checkpoint replaces them, and they do not affect which others are kept.

    With `config.asynchronous` a thread writes copies in host memory while the run continues. The next method call
    raises an error of that thread. All methods are collective unless they say otherwise, and `directory` is shared by
    all ranks. `limit` is the timeout of ranks that wait for a rank that writes. `seconds` is the duration of the last
    finished save, the write included, and 0 before the first one.
    """

    def __init__(
        self, directory: Path, config: CheckpointConfig, hf_path: Path, target_range: str, limit: timedelta
    ) -> None:
        self.directory = directory
        self._config = config
        self._hf_path, self._target_range = hf_path, target_range
        # The thread needs its own group, because the run communicates while the thread writes.
        self._group = dist.new_group(backend="gloo", timeout=limit)
        self._writing: Future[None] | None = None
        self.seconds = 0.0

    def save(
        self,
        position: Position,
        models: Mapping[str, MegatronModel],
        state: Callable[[], dict[str, Any]],
        best: int | None,
        *,
        interim: bool = False,
    ) -> None:
        """Writes a checkpoint after the previous write has ended. `best` is the iteration that the link `best` names.

        `state` returns the state as JSON can write it. Only the first rank, which writes it, calls that: with partial
        rollouts it has every token that waits.
        Returns as soon as the models may change. Without `asynchronous` that is the end of the write.
        """
        self.wait()
        begun = time.monotonic()
        checkpoint = self.directory / f"{_INTERIM if interim else ''}{position}"
        state_json = json.dumps(state()) if rank_and_ranks()[0] == 0 else ""
        dist_checkpoint.prepare_directories(checkpoint, models)
        parts = dist_checkpoint.capture_models(checkpoint, models, copied=self._config.asynchronous)

        def write(parts: Iterable[tuple[str, Captured]]) -> None:
            self._write(checkpoint, parts, state_json, best)
            self.seconds = time.monotonic() - begun

        if self._config.asynchronous:
            copies = list(parts)
            self._writing = _in_background(lambda: write(copies))
        else:
            write(parts)

    def wait(self) -> None:
        """Waits for the end of the last write. Raises its error."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def check(self) -> None:
        """Raises the error of the last write, if that write has ended."""
        if self._writing and self._writing.done():
            self.wait()

    def iterations_to_keep(self, best: int | None) -> set[int]:
        """Returns the iterations whose checkpoints remain after the next save, if iteration `best` stays the best."""
        self.wait()
        # Nodes may see a change of the directory at different times, so one rank reads it for all.
        return broadcast_from_first(
            kept_iterations(self.directory, self._config.keep - 1, best, self._config.keep_every)
        )

    def newest_iteration(self) -> int | None:
        """Returns the newest iteration with a complete checkpoint, interim ones excluded, as this rank sees it.

        Not collective.
        """
        return max(map(_iteration, complete_checkpoints(self.directory)), default=None)

    def _write(self, checkpoint: Path, parts: Iterable[tuple[str, Captured]], state: str, best: int | None) -> None:
        def add_description_and_state(directory: Path) -> None:
            checkpoint_format.write_description(directory, self._model_directory(), self._target_range)
            (directory / _STATE).write_text(state)

        dist_checkpoint.write(checkpoint, parts, self._group, add_description_and_state)
        dist_checkpoint.run_on_first_rank(lambda: self._link_best_and_remove_old(checkpoint, best), self._group)

    def _model_directory(self) -> Path:
        """Returns the directory that describes the model.

        It is in the previous checkpoint if there is one, because the start's own directory may have been removed.
        """
        previous = checkpoint_directories(self.directory)
        return previous[-1] / checkpoint_format.HUGGING_FACE if previous else self._hf_path

    def _link_best_and_remove_old(self, written: Path, best: int | None) -> None:
        """After a write, links `best` and removes the checkpoints that are no longer kept."""
        if best is not None:
            _link(self.directory / _BEST, str(Position(ITERATION, best)))
        keep = kept_iterations(self.directory, self._config.keep, best, self._config.keep_every)
        outdated = [path for path in complete_checkpoints(self.directory) if _iteration(path) not in keep]
        interim = [path for path in checkpoint_directories(self.directory) if path.name.startswith(_INTERIM)]
        dist_checkpoint.remove_old(self.directory, [path for path in (*outdated, *interim) if path != written])


def complete_checkpoints(directory: Path) -> list[Path]:
    """Returns the checkpoints of iterations that have a `state.json`, oldest first, interim ones excluded.

    Their files are not checked: one of them may be damaged.
    """
    return [
        path
        for path in checkpoint_directories(directory)
        if path.name.startswith(_PREFIX) and (path / _STATE).is_file()
    ]


def checkpoint_directories(directory: Path) -> list[Path]:
    """Returns all directories with a checkpoint's name, oldest first, damaged and interim ones included."""
    return sorted(filter(_is_named, directory.glob("i*-*")), key=checkpoint_order)


def iteration_path(directory: Path, iteration: int) -> Path:
    """Returns the path of an iteration's checkpoint, whether it exists or not."""
    return directory / str(Position(ITERATION, iteration))


def foreign_paths(directory: Path) -> list[Path]:
    """Returns paths in a directory of checkpoints that no run writes, such as copies and exports of its user."""
    run_names = (_BEST, REFERENCE)
    return [
        path
        for path in sorted(directory.glob("[!.]*"))
        if path.name not in run_names and not path.name.startswith(_DAMAGED) and not _is_named(path)
    ]


def checkpoint_order(checkpoint: Path) -> tuple[int, int, bool]:
    """Returns a sort key in the order in which a run writes its checkpoints.

    Of two checkpoints of one position the interim one comes first.
    """
    stage, _, completed = checkpoint.name.removeprefix(_INTERIM).rpartition("-")
    return _STAGES.index(stage), int(completed), not checkpoint.name.startswith(_INTERIM)


def kept_iterations(directory: Path, newest: int, best: int | None, interval: int = 0) -> set[int]:
    """Returns the iterations whose checkpoints are kept.

    These are the `newest` last ones, the iteration `best`, and the multiples of `interval` unless that is 0.
    """
    iterations = [_iteration(path) for path in complete_checkpoints(directory)]
    first_kept = len(iterations) - newest
    return {
        iteration
        for index, iteration in enumerate(iterations)
        if index >= first_kept or iteration == best or _is_multiple(iteration, interval)
    }


def newest_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest intact checkpoint, None if there is none, and one line per skipped path. Collective.

    Damaged checkpoints are renamed to `damaged-NAME`, remains of interrupted writes are removed, and `foreign_paths`
    stay. Raises NoUsableCheckpoint if all checkpoints are damaged.
    """
    damaged: dict[Path, list[str]] = {}
    usable = None
    for candidate in reversed(broadcast_from_first(checkpoint_directories(directory))):
        problems = dist_checkpoint.checkpoint_problems(candidate)
        if not problems:
            usable = candidate
            break
        damaged[candidate] = problems
    lines = [f"not a checkpoint's name, ignored: {path}" for path in foreign_paths(directory)]
    lines += [f"checkpoint passed over: {problem}" for problems in damaged.values() for problem in problems]
    if damaged and not usable:
        listed = "\n".join(lines)
        raise NoUsableCheckpoint(f"{listed}\nno checkpoint is usable; remove {directory} to start afresh")
    if dist.get_rank() == 0:
        for path in damaged:
            renamed = path.with_name(_DAMAGED + path.name)
            dist_checkpoint.remove(renamed)
            path.rename(renamed)
        lines += [
            f"removed the remains of an interrupted write: {path}" for path in dist_checkpoint.remove_remains(directory)
        ]
    dist.barrier()
    return usable, lines


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Returns the state that `save` wrote into a complete checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    return state


def _in_background(work: Callable[[], None]) -> Future[None]:
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    # A rank that fails lets a nearly finished write end. It does not wait longer, because other ranks may never join.
    thread = threading.Thread(target=run, name="checkpoint", daemon=True)
    atexit.register(thread.join, _EXIT_WAIT_SECONDS)
    thread.start()
    return future


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)
    hf_files.fsync_path(link.parent)


def _is_named(path: Path) -> bool:
    """Returns whether the path is a directory with a checkpoint's name. A partial copy under one counts as damaged."""
    return _NAME.fullmatch(path.name) is not None and path.is_dir()


def _iteration(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _is_multiple(iteration: int, interval: int) -> bool:
    return bool(interval and iteration) and iteration % interval == 0
