"""The course of a run: what it resumes from, where it may be interrupted, and what is saved of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tempo_megatron.generation.engine import GenerationStopped
from tempo_megatron.generation.recorded import RecordedGenerator
from tempo_megatron.megatron.checkpointing import dist_checkpoint, saver
from tempo_megatron.megatron.checkpointing.saver import ITERATION, REFERENCE, WARM_START, Position
from tempo_megatron.supervision.interruption import Interrupted, InterruptionRequest
from tempo_megatron.training.models import Models
from tempo_megatron.utils.heartbeat import Pace, expect_pace

State = dict[str, Any]
"""what a checkpoint holds beside models: all that JSON can write"""


class Lifecycle:
    """Resumes a run from its newest complete checkpoint, and saves it where it may be left.

    `present` gives the run's own part of the state that is saved, `phase` enters a phase. `resumed_from`: the
    checkpoint, None where there was none. `unconcluded`: metrics of the present iteration, of a run that was
    interrupted before it measured it.
    """

    def __init__(
        self,
        saver: saver.Saver,
        models: Models,
        interruption: InterruptionRequest,
        present: Callable[[], State],
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.saver, self.interruption = saver, interruption
        self._models, self._run_state, self._phase = models, present, phase
        self.resumed_from: Path | None = None
        self._stage: Position | None = Position(WARM_START, 0)
        self.unconcluded: State | None = None
        self._boundary: State | None = None
        self._saved: Position | None = None
        self._stretch_seconds = 0.0
        self._could_be_interrupted = time.monotonic()

    def resume(self) -> tuple[State, list[str]]:
        """Load the models' state; returns the run's own, {} where there is no checkpoint, and a line for all that there
        is to say. Collective."""
        found, lines = saver.newest_checkpoint(self.saver.directory)
        if not found:
            return {}, lines
        state = saver.read_state(found)
        position = _position(state)
        if position.stage == WARM_START:
            self._models.begin_warm_start()
        else:
            self._models.load_reference(self.saver.directory / REFERENCE)
        self._models.freeze_at(position)
        dist_checkpoint.load_checkpoint(found, self._models.saved)
        self._stage = None if position.stage == ITERATION else position
        self.resumed_from, self._saved, self.unconcluded = found, position, state["unconcluded"]
        self.saver.seconds, self._stretch_seconds = state["save_seconds"], state["stretch_seconds"]
        return state, [*lines, f"resumed from {found}"]

    def keep_reference(self) -> None:
        """Save the reference, which checkpoints do not hold since it stays as it is. Collective."""
        self._models.keep_reference(self.saver.directory / REFERENCE)

    @property
    def in_stages(self) -> bool:
        """Whether the stages before the first iteration are not over."""
        return self._stage is not None

    def is_in(self, stage: str) -> bool:
        """Whether it is this stage that the run has begun and not left."""
        return self._stage is not None and self._stage.stage == stage

    def remaining(self, stage: str, steps: int) -> range:
        """The steps that are still to be made of a stage, counted from 0."""
        return range(self._stage.completed if self._stage and self._stage.stage == stage else 0, steps)

    def reached_in_stage(self, stage: str, done: int) -> None:
        """So many steps of a stage are done: a run that is interrupted from here on goes on with the next."""
        self._stage = Position(stage, done)
        self._note_stretch()
        self._boundary = self._present()

    def begin(self) -> None:
        """The next iteration begins, from a state that a run which is interrupted can be saved in. Collective."""
        self._boundary = self._present()
        self.pause()

    def reached(self, metrics: State) -> None:
        """Both models have learned and the generator is in step: what follows only measures, and `metrics` wait for
        it. A run that is interrupted here concludes the iteration when it resumes."""
        self._note_stretch()
        self._boundary = self._present() | {"unconcluded": metrics}
        self.pause()

    @contextlib.contextmanager
    def may_be_interrupted(self, generator: RecordedGenerator) -> Iterator[None]:
        """Generation that ends early, as Interrupted, when the run is asked to stop: nothing has been learned since the
        boundary that would be saved."""
        generator.stop_when(self.interruption.is_requested)
        try:
            yield
        except GenerationStopped as stopped:
            raise Interrupted(self.interruption.agree()) from stopped
        finally:
            generator.stop_when(None)
        # Grading, which comes after it, cannot be.
        self._could_be_interrupted = max(self._could_be_interrupted, generator.ended)

    def pause(self) -> None:
        """Raise Interrupted where the run was asked to stop. Collective."""
        self.interruption.set_lead(self.saver.seconds, self._stretch_seconds)
        reason = self.interruption.agree()
        if reason:
            raise Interrupted(reason)
        self._could_be_interrupted = time.monotonic()

    def save(self) -> None:
        """A checkpoint of the present iteration, before which all stages are over. Collective."""
        self._stage = None
        self._save(self._present(), interim=False)

    def save_in_stage(self) -> None:
        """An interim checkpoint of the stage that the run is in. Collective."""
        self._save(self._present(), interim=True)

    def save_interrupted(self) -> str:
        """Save the boundary that the run was interrupted after, unless it is saved; returns what the next start does.
        Collective."""
        state = self._boundary
        if state and _position(state) != self._saved:
            self._save(state, interim=True)
        self.saver.wait()
        if self._saved:
            return f"{self._saved} is saved; the same command resumes"
        return "nothing to save yet; the same command begins anew"

    def _save(self, state: State, *, interim: bool) -> None:
        self._saved = _position(state)
        with self._phase("save"), expect_pace(Pace.untimed):
            self.saver.save(self._saved, self._models.saved, state, state["choice"]["best"], interim=interim)

    def _present(self) -> State:
        times = {"save_seconds": self.saver.seconds, "stretch_seconds": self._stretch_seconds}
        stage = self._stage and astuple(self._stage)
        return self._run_state() | times | {"stage": stage, "unconcluded": None}

    def _note_stretch(self) -> None:
        """How long the run could not be interrupted, which the deadline's lead must leave room for."""
        stretch = time.monotonic() - self._could_be_interrupted
        self._stretch_seconds = max(self._stretch_seconds, stretch)


def _position(state: State) -> Position:
    """Where a run was in that state; checkpoints of before stages were saved name none."""
    return Position(*state["stage"]) if state.get("stage") else Position(ITERATION, state["iteration"])
