"""Resume, interruption and saving of a run.

A signal or a deadline asks a run to stop (`supervision/interruption.py`). The run raises `Interrupted` at the next
point where a checkpoint can represent it: in `check_interruption`, between steps, or in `interruptible`, during
generation. `loop.train` then calls `Run.save_interrupted`, which saves the last snapshot that can be resumed from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from tempo_megatron.generation.engine import GenerationStopped
from tempo_megatron.generation.recorded import RecordedGenerator
from tempo_megatron.megatron.checkpointing import dist_checkpoint, saver
from tempo_megatron.megatron.checkpointing.saver import REFERENCE, WARM_START, Position
from tempo_megatron.supervision.interruption import Interrupted, InterruptionRequest
from tempo_megatron.training.models import Models
from tempo_megatron.training.reporting import Console
from tempo_megatron.training.state import RunState
from tempo_megatron.utils.heartbeat import Pace, expect_pace


class Lifecycle:
    """Resumes a run from its newest intact checkpoint, interrupts it where it may stop, and saves it.

    Methods that take a `state` take `Run.snapshot()`: what a checkpoint would hold at that point. `phase` enters a
    named phase.
    """

    resumed_from: Path | None = None
    """The checkpoint that the run resumed from. It is None for a new run."""
    unconcluded: dict[str, float] | None = None
    """Metrics of an iteration whose learning is over but which the last start did not evaluate and log."""

    def __init__(
        self,
        saver: saver.Saver,
        models: Models,
        interruption: InterruptionRequest,
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.saver, self.interruption = saver, interruption
        self._models, self._phase = models, phase
        self._stage: Position | None = Position(WARM_START, 0)
        self._resumable: RunState | None = None
        """The last snapshot from which a run that is interrupted now can resume."""
        self._last_saved: Position | None = None
        self._longest_stretch_seconds = 0.0
        self._last_interruptible = time.monotonic()

    def resume(self, console: Console) -> RunState:
        """Load the newest intact checkpoint into the models; return its state.

        Without a checkpoint it returns the state of a new run. Collective.
        """
        checkpoint, lines = saver.newest_checkpoint(self.saver.directory)
        for line in lines:
            console.warn(line)
        if not checkpoint:
            return RunState()
        try:
            state = RunState.from_json(saver.read_state(checkpoint))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{checkpoint}: its state.json is of another version of tempo-megatron ({error}); resume with that "
                "version, or start in another run_dir"
            ) from error
        position = state.position
        if position.stage == WARM_START:
            self._models.begin_warm_start()
        else:
            self._models.load_reference(self.saver.directory / REFERENCE)
        self._models.freeze_at(position)
        dist_checkpoint.load_checkpoint(checkpoint, self._models.saved)
        self._stage, self.unconcluded = state.stage, state.unconcluded
        self.resumed_from, self._last_saved = checkpoint, position
        self.saver.seconds, self._longest_stretch_seconds = state.save_seconds, state.longest_stretch_seconds
        console.say(f"resumed from {checkpoint}")
        return state

    def keep_reference(self) -> None:
        """Save the reference model, which never changes and which checkpoints leave out. Collective."""
        self._models.keep_reference(self.saver.directory / REFERENCE)

    @property
    def in_stages(self) -> bool:
        """Whether the run is still in the stages before iteration 1."""
        return self._stage is not None

    def is_in(self, stage: str) -> bool:
        """Whether the run is in this stage."""
        return self._stage is not None and self._stage.stage == stage

    def remaining_steps(self, stage: str, steps: int) -> range:
        """Return the numbers, from 0, of the steps of a stage that the run still has to make."""
        return range(self._stage.completed if self._stage and self._stage.stage == stage else 0, steps)

    def end_stage_step(self, state: RunState, stage: str, steps: int) -> None:
        """Note that `steps` steps of a stage are complete. A run that is interrupted later resumes after them."""
        self._stage = Position(stage, steps)
        self._measure_stretch()
        self._resumable = self._completed(state)

    def begin_iteration(self, state: RunState) -> None:
        """Note that an iteration begins. Raises Interrupted if the run was asked to stop. Collective."""
        self._resumable = self._completed(state)
        self.check_interruption()

    def end_learning(self, state: RunState, metrics: dict[str, float]) -> None:
        """Note that both models have learned and the generator has the new weights; only measurement is left.

        Raises Interrupted if the run was asked to stop. The resumed run then concludes the iteration with `metrics`.
        Collective.
        """
        self._measure_stretch()
        self._resumable = replace(self._completed(state), unconcluded=dict(metrics))
        self.check_interruption()

    @contextlib.contextmanager
    def interruptible(self, generator: RecordedGenerator) -> Iterator[None]:
        """Let generation in the block end early, and raise Interrupted, when the run is asked to stop.

        No model may have learned since the last snapshot that can be resumed from.
        """
        generator.stop_when(self.interruption.is_requested)
        try:
            yield
        except GenerationStopped as stopped:
            raise Interrupted(self.interruption.agree()) from stopped
        finally:
            generator.stop_when(None)
        # Grading follows generation and cannot be interrupted.
        self._last_interruptible = max(self._last_interruptible, generator.ended)

    def check_interruption(self) -> None:
        """Raise Interrupted if the run was asked to stop. Collective."""
        self.interruption.set_lead(self.saver.seconds, self._longest_stretch_seconds)
        reason = self.interruption.agree()
        if reason:
            raise Interrupted(reason)
        self._last_interruptible = time.monotonic()

    def save(self, state: RunState) -> None:
        """Save a checkpoint of the current iteration. The stages are over. Collective."""
        self._stage = None
        self._save(self._completed(state), interim=False)

    def save_in_stage(self, state: RunState) -> None:
        """Save an interim checkpoint of the current stage. Collective."""
        self._save(self._completed(state), interim=True)

    def save_interrupted(self) -> str:
        """Save the last snapshot that can be resumed from, unless it is saved; return what the next start does.

        Collective.
        """
        state = self._resumable
        if state and state.position != self._last_saved:
            self._save(state, interim=True)
        self.saver.wait()
        if self._last_saved:
            return f"{self._last_saved} is saved; the same command resumes"
        return "nothing to save yet; the same command begins anew"

    def _save(self, state: RunState, *, interim: bool) -> None:
        self._last_saved = state.position
        with self._phase("save"), expect_pace(Pace.untimed):
            best = state.selection.best
            self.saver.save(state.position, self._models.saved, state.to_json, best, interim=interim)

    def _completed(self, state: RunState) -> RunState:
        """Return the snapshot with the fields that only this class knows."""
        return replace(
            state,
            save_seconds=self.saver.seconds,
            longest_stretch_seconds=self._longest_stretch_seconds,
            stage=self._stage,
            unconcluded=None,
        )

    def _measure_stretch(self) -> None:
        """Measure how long the run could not be interrupted. The deadline leaves time for the longest stretch."""
        stretch = time.monotonic() - self._last_interruptible
        self._longest_stretch_seconds = max(self._longest_stretch_seconds, stretch)
