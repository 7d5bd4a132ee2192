"""The course of a run: what it resumes from, where it may be interrupted, and what is saved of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from tempo_megatron.generation.engine import GenerationStopped
from tempo_megatron.generation.recorded import RecordedGenerator
from tempo_megatron.megatron import checkpoint, saving
from tempo_megatron.models import Models
from tempo_megatron.supervision.interruption import Interrupted, Interruption

State = dict[str, Any]
"""what a checkpoint holds beside models: all that JSON can write"""

_REFERENCE = "reference"


class Course:
    """Resumes a run from its newest complete checkpoint, and saves it where it may be left.

    `present` gives the run's own part of the state that is saved, `phase` enters a phase. `resumed`: there was a
    checkpoint. `unconcluded`: metrics of the present iteration, of a run that was interrupted before it measured it.
    """

    def __init__(
        self,
        saver: saving.Saver,
        models: Models,
        interruption: Interruption,
        present: Callable[[], State],
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.saver, self.interruption = saver, interruption
        self._models, self._run_state, self._phase = models, present, phase
        self.resumed = False
        self.unconcluded: State | None = None
        self._boundary: State | None = None
        self._saved = -1
        self._save_seconds = self._stretch_seconds = 0.0

    def resume(self) -> tuple[State, list[str]]:
        """Load the models' state; returns the run's own, {} where there is no checkpoint, and a line for all that there
        is to say. Collective."""
        found, lines = saving.newest(self.saver.directory)
        if not found:
            return {}, lines
        state = saving.read_state(found)
        checkpoint.load(found, self._models.trainers)
        self._models.load_reference(self.saver.directory / _REFERENCE)
        self.resumed, self._saved, self.unconcluded = True, state["iteration"], state["unconcluded"]
        self._save_seconds, self._stretch_seconds = state["save_seconds"], state["stretch_seconds"]
        self._allow()
        return state, [*lines, f"resumed from {found}"]

    def keep_reference(self) -> None:
        """Save the reference, which checkpoints do not hold since it stays as it is. Collective."""
        self._models.keep_reference(self.saver.directory / _REFERENCE)

    def begin(self) -> None:
        """The next iteration begins, from a state that a run which is interrupted can be saved in. Collective."""
        self._boundary = self._present()
        self.pause()

    def reached(self, metrics: State) -> None:
        """Both models have learnt and the generator is in step: what follows only measures, and `metrics` wait for
        it. A run that is interrupted here concludes the iteration when it resumes."""
        stretch = time.monotonic() - self._could_be_interrupted
        self._stretch_seconds = max(self._stretch_seconds, stretch)
        self._allow()
        self._boundary = self._present() | {"unconcluded": metrics}
        self.pause()

    @contextlib.contextmanager
    def may_be_interrupted(self, generator: RecordedGenerator) -> Iterator[None]:
        """Generation that ends early, as Interrupted, when the run is asked to stop: nothing has been learnt since the
        boundary that would be saved."""
        generator.stop_when(self.interruption.asked)
        try:
            yield
        except GenerationStopped as stopped:
            raise Interrupted(self.interruption.agreed()) from stopped
        finally:
            generator.stop_when(None)
        self._could_be_interrupted = time.monotonic()

    def pause(self) -> None:
        """Raise Interrupted where the run was asked to stop. Collective."""
        reason = self.interruption.agreed()
        if reason:
            raise Interrupted(reason)

    def save(self) -> None:
        """A checkpoint of the present iteration. Collective."""
        self._save(self._present())

    def save_interrupted(self) -> str:
        """Save the boundary that the run was interrupted after; returns what the next start does. A run that has none
        yet starts over. Collective."""
        state = self._boundary
        if state and (state["unconcluded"] or state["iteration"] != self._saved):
            self._save(state)
        self.saver.wait()
        if state:
            return f"saved iteration {state['iteration']}; the same command resumes"
        return f"nothing new to save; the next start {'goes on' if self.resumed else 'begins anew'}"

    def _save(self, state: State) -> None:
        begun = time.monotonic()
        with self._phase("save"):
            self.saver.save(state["iteration"], self._models.trainers, state, state["choice"]["best"])
        self._saved = state["iteration"]
        self._save_seconds = time.monotonic() - begun
        self._allow()

    def _present(self) -> State:
        times = {"save_seconds": self._save_seconds, "stretch_seconds": self._stretch_seconds}
        return self._run_state() | times | {"unconcluded": None}

    def _allow(self) -> None:
        self.interruption.allow(self._save_seconds, self._stretch_seconds)
