"""The checkpoints of a run: which is written, which stay, and which the run goes on from."""

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
from tempo_megatron.megatron.trainer import ScoringModel
from tempo_megatron.utils.distributed import from_first

if TYPE_CHECKING:
    from tempo_megatron.megatron.checkpointing.capture import Captured

REFERENCE = "reference"
"""directory of the reference model's weights, which stay as they are"""
_STATE = "state.json"
_BEST = "best"
_LINGER_SECONDS = 20.0
WARM_START, CRITIC_START, ITERATION = _STAGES = ("warm_start", "critic_start", "iteration")
_PREFIX, _INTERIM, _DAMAGED = f"{ITERATION}-", "interim-", "damaged-"
_NAME = re.compile(rf"({ITERATION}|{_INTERIM}({'|'.join(_STAGES)}))-\d{{6,}}")


class NoUsableCheckpoint(RuntimeError):
    """A run has checkpoints, and all of them are damaged or incomplete."""


@dataclass(frozen=True)
class Position:
    """How far a run has come: so many steps of a stage before the first iteration, or so many iterations, are done."""

    stage: str
    done: int

    def __str__(self) -> str:
        return f"{self.stage}-{self.done:06d}"


class Saver:
    """Writes the checkpoints of a run into `directory`, one at a time: `iteration-000020/` has a directory a model,
    what `checkpoint_files` describes of the model, at first that at `hf_path`, and `state.json`, what else the loop
    needs to go on.

    Interim ones (`interim-iteration-000023/`, `interim-critic_start-000004/`) are there to go on from alone: the next
    checkpoint takes the place of each, and what else is kept does not depend on them.

    With `config.asynchronous` the write goes on in a thread, from copies in host memory, while the run does too. Its
    error is raised by whichever method is called next. All methods are collective; all ranks see `directory`.
    `limit`: after which ranks that wait for one that writes give up.
    `seconds`: what the last save that is over took to the end of its writing; 0 before there was one.
    """

    def __init__(
        self, directory: Path, config: CheckpointConfig, hf_path: Path, target_range: str, limit: timedelta
    ) -> None:
        self.directory = directory
        self._config = config
        self._hf_path, self._target_range = hf_path, target_range
        # Of its own: the run goes on talking while the thread writes.
        self._group = dist.new_group(backend="gloo", timeout=limit)
        self._writing: Future[None] | None = None
        self.seconds = 0.0

    def save(
        self,
        position: Position,
        models: Mapping[str, ScoringModel],
        state: dict[str, Any],
        best: int | None,
        *,
        interim: bool = False,
    ) -> None:
        """Write a checkpoint, once the write before it is over. `best` is the iteration that `best` will link to.

        Returns when the models may change: without `asynchronous`, when all is written.
        """
        self.wait()
        begun = time.monotonic()
        made, text = self.directory / f"{_INTERIM if interim else ''}{position}", json.dumps(state)
        dist_checkpoint.begin(made, models)
        parts = dist_checkpoint.captured(made, models, copied=self._config.asynchronous)

        def write(parts: Iterable[tuple[str, Captured]]) -> None:
            self._write(made, parts, text, best)
            self.seconds = time.monotonic() - begun

        if self._config.asynchronous:
            held = list(parts)
            self._writing = _in_background(lambda: write(held))
        else:
            write(parts)

    def wait(self) -> None:
        """Until the last write is over. Raises what it failed with."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def check(self) -> None:
        """Raise what the last write failed with, if it is over."""
        if self._writing and self._writing.done():
            self.wait()

    def kept(self, best: int | None) -> set[int]:
        """Iterations of the checkpoints that will stay beside the next one, if iteration `best` remains the best."""
        self.wait()
        # Another node may see the directory a little later: one rank looks for all.
        return from_first(kept(self.directory, self._config.keep - 1, best, self._config.keep_every))

    def newest_iteration(self) -> int | None:
        """Of the checkpoints that are no interim ones and were written to their end so far, as this rank sees it. Not
        collective."""
        return max(map(_iteration, complete(self.directory)), default=None)

    def _write(self, made: Path, parts: Iterable[tuple[str, Captured]], state: str, best: int | None) -> None:
        def beside(aside: Path) -> None:
            checkpoint_format.describe(aside, self._model_directory(), self._target_range)
            (aside / _STATE).write_text(state)

        dist_checkpoint.write(made, parts, self._group, beside)
        dist_checkpoint.on_first(lambda: self._settle(made, best), self._group)

    def _model_directory(self) -> Path:
        """What describes the model: the checkpoint before, so that the directory of the start may be gone by now."""
        before = resumable(self.directory)
        return before[-1] / checkpoint_format.HUGGING_FACE if before else self._hf_path

    def _settle(self, made: Path, best: int | None) -> None:
        """After a write: point to the best, and let go of what does not stay."""
        if best is not None:
            _link(self.directory / _BEST, str(Position(ITERATION, best)))
        stay = kept(self.directory, self._config.keep, best, self._config.keep_every)
        going = [old for old in complete(self.directory) if _iteration(old) not in stay]
        interim = [old for old in resumable(self.directory) if old.name.startswith(_INTERIM)]
        dist_checkpoint.remove_old(self.directory, [old for old in (*going, *interim) if old != made])


def complete(directory: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first, without interim ones."""
    return [path for path in resumable(directory) if path.name.startswith(_PREFIX) and (path / _STATE).is_file()]


def resumable(directory: Path) -> list[Path]:
    """All that has a checkpoint's name, damaged or not, interim ones too, oldest first."""
    return sorted(filter(_is_named, directory.glob("i*-*")), key=order)


def of_iteration(directory: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is, or would be."""
    return directory / str(Position(ITERATION, iteration))


def foreign(directory: Path) -> list[Path]:
    """What a run never wrote into its directory of checkpoints: copies and exports under names of their own."""
    own = (_BEST, REFERENCE)
    return [
        path
        for path in sorted(directory.glob("[!.]*"))
        if path.name not in own and not path.name.startswith(_DAMAGED) and not _is_named(path)
    ]


def order(saved: Path) -> tuple[int, int, bool]:
    """Grows from checkpoint to checkpoint of a run. Of two of one place the interim one was first."""
    stage, _, done = saved.name.removeprefix(_INTERIM).rpartition("-")
    return _STAGES.index(stage), int(done), not saved.name.startswith(_INTERIM)


def kept(directory: Path, newest: int, best: int | None, every: int = 0) -> set[int]:
    """Iterations of the checkpoints that stay when so many of the newest are kept, the best, and with `every` those of
    its multiples."""
    there = [_iteration(path) for path in complete(directory)]
    old = len(there) - newest
    return {number for at, number in enumerate(there) if at >= old or number == best or _is_multiple(number, every)}


def newest(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as it was written, None where there is no checkpoint; and a line for
    all that was passed over: what is damaged goes out of the way as `damaged-...`, remains of interrupted
    writes are removed, `foreign` names stay. Raises NoUsableCheckpoint where no checkpoint is left to go on from.
    Collective."""
    damaged: dict[Path, list[str]] = {}
    found = None
    for candidate in reversed(from_first(resumable(directory))):
        problems = dist_checkpoint.checkpoint_problems(candidate)
        if not problems:
            found = candidate
            break
        damaged[candidate] = problems
    lines = [f"not a checkpoint's name, ignored: {path}" for path in foreign(directory)]
    lines += [f"checkpoint passed over: {problem}" for problems in damaged.values() for problem in problems]
    if damaged and not found:
        listed = "\n".join(lines)
        raise NoUsableCheckpoint(f"{listed}\nnone is left to go on from; remove {directory} to start afresh")
    if dist.get_rank() == 0:
        for path in damaged:
            aside = path.with_name(_DAMAGED + path.name)
            dist_checkpoint.remove(aside)
            path.rename(aside)
        lines += [
            f"removed what an interrupted write left: {path}" for path in dist_checkpoint.remove_remains(directory)
        ]
    dist.barrier()
    return found, lines


def read_state(saved: Path) -> dict[str, Any]:
    """What `save` was given, of a complete checkpoint."""
    state: dict[str, Any] = json.loads((saved / _STATE).read_text())
    return state


def _in_background(work: Callable[[], None]) -> Future[None]:
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    # A rank that fails lets a write end that is nearly over, but waits no longer for others that may never come.
    thread = threading.Thread(target=run, name="checkpoint", daemon=True)
    atexit.register(thread.join, _LINGER_SECONDS)
    thread.start()
    return done


def _link(link: Path, target: str) -> None:
    aside = link.with_name(f".{link.name}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.rename(link)
    hf_files.fsync_path(link.parent)


def _is_named(path: Path) -> bool:
    """Whether it is a directory that has a checkpoint's name. (One that was half copied under it is damaged.)"""
    return _NAME.fullmatch(path.name) is not None and path.is_dir()


def _iteration(saved: Path) -> int:
    return int(saved.name.removeprefix(_PREFIX))


def _is_multiple(iteration: int, every: int) -> bool:
    return bool(every and iteration) and iteration % every == 0
