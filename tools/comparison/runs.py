"""Trains runs side by side, each on a free GPU or on cores of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tempo_megatron.config import load_config
from tempo_megatron.run_dir.layout import recipe_differences


@dataclass(frozen=True)
class Piece:
    """One run: a recipe with overrides, in a directory."""

    recipe: Path
    directory: Path
    overrides: tuple[str, ...]
    start: Path | None = None
    """The run that this one continues from, and that has to be complete before."""


@dataclass(frozen=True)
class Slots:
    """How many runs go at a time, and where."""

    jobs: int = 1
    """Runs at a time, spread evenly over the GPUs."""
    gpus: tuple[str, ...] = ()
    """GPU numbers; empty: the runs see what this process sees."""
    delay: float = 0.0
    """Seconds between starts on a GPU. Engines that share it measure its memory, and fail if another ends then."""


def train(piece: Piece, gpu: str | None) -> None:
    """Trains a run to its end, on GPU `gpu` if it is named. Skips a run that has a summary.

    The output goes to the run's directory. Raises RuntimeError, with the command, for a run that fails, and for one
    whose start is not complete.
    """
    run = piece.directory
    if is_complete(run):
        return
    if piece.start and not is_complete(piece.start):
        raise RuntimeError(f"{run.name} was not started, because {piece.start.name} is not complete")
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tempo_megatron.cli", "train", str(piece.recipe)]
    command += [f"run_dir={run}", *piece.overrides]
    with (run / "output.log").open("a") as log:
        environment = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        process = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; see {run / 'output.log'}")
    print(f"{run.name}: done", flush=True)


def differing_settings(piece: Piece) -> list[str]:
    """Returns a line for each setting in which the run that exists differs from the piece; [] where none exists."""
    config = load_config(piece.recipe, (f"run_dir={piece.directory}", *piece.overrides))
    lines = recipe_differences(config)
    if is_complete(piece.directory):
        ended = load_config(piece.directory / "config.yaml").loop.iterations
        if ended != config.loop.iterations:
            lines.append(f"run_dir {piece.directory} has ended after {ended} iterations, not {config.loop.iterations}")
    return lines


def is_complete(run: Path) -> bool:
    """Returns whether a run has reached its end."""
    return (run / "summary.json").is_file()


class _Queue:
    """Hands out runs in order, each once the run that it continues from has ended, well or badly."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._waiting = list(pieces)
        self._unended = {piece.directory for piece in pieces}
        self._changed = threading.Condition()

    def take(self) -> Piece | None:
        """Returns the next run, once there is one that can start; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._ready())
            piece = self._ready()
            if piece:
                self._waiting.remove(piece)
                self._changed.notify_all()
            return piece

    def end(self, piece: Piece) -> None:
        with self._changed:
            self._unended.remove(piece.directory)
            self._changed.notify_all()

    def _ready(self) -> Piece | None:
        return next((piece for piece in self._waiting if piece.start not in self._unended), None)


def train_all(pieces: Sequence[Piece], slots: Slots) -> None:
    """Trains all runs, each as soon as a slot is free and the run that it continues from has ended.

    A run that fails is printed at once and stops no other. Raises ExceptionGroup at the end.
    """
    gpus: list[str | None] = list(slots.gpus) or [None]
    start_locks = {gpu: threading.Lock() for gpu in gpus}
    queue, errors = _Queue(pieces), []

    def fill_slot(number: int) -> None:
        gpu = gpus[number % len(gpus)]
        while piece := queue.take():
            try:
                with start_locks[gpu]:
                    time.sleep(slots.delay)
                train(piece, gpu)
            except Exception as error:
                print(error, file=sys.stderr, flush=True)
                errors.append(error)
            finally:
                queue.end(piece)

    with ThreadPoolExecutor(slots.jobs) as pool:
        list(pool.map(fill_slot, range(slots.jobs)))
    if errors:
        raise ExceptionGroup("some runs failed; the same command tries them again", errors)
