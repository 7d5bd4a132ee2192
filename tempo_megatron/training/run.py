"""A run: its parts, the state that a checkpoint holds of them, and its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import Config
from tempo_megatron.generation.recorded import RecordedGenerator
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.megatron import topology
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.report.command import REPORT_NAME, report_in_subprocess
from tempo_megatron.run_dir.layout import interrupted_mark, write_summary
from tempo_megatron.run_dir.lock import RunLock
from tempo_megatron.supervision.watchdog import Watchdog
from tempo_megatron.training.export import export_run, summary
from tempo_megatron.training.lifecycle import Lifecycle
from tempo_megatron.training.models import Models
from tempo_megatron.training.phases.collect import Collector
from tempo_megatron.training.phases.evaluate import Evaluator, evaluation_metrics
from tempo_megatron.training.phases.pass_rates import PassRateHistory
from tempo_megatron.training.phases.select_checkpoint import CheckpointSelector, Selection
from tempo_megatron.training.recording import Recorder
from tempo_megatron.training.reporting import Console, RunLog, evaluation_line
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.training.run_data import RunData
from tempo_megatron.training.state import RunState
from tempo_megatron.utils.distributed import barrier
from tempo_megatron.utils.heartbeat import Pace, expect_pace


@dataclass
class Run:
    """The parts of a run, which `build_run` puts together, and what the loop does with several of them at once.

    Methods are collective unless they say otherwise.
    """

    config: Config
    topology: Topology
    console: Console
    residency: DeviceResidency
    watchdog: Watchdog
    lock: RunLock | None
    """The lock of the run directory, which only the first rank holds."""
    data: RunData
    grader: RolloutGrader
    evaluator: Evaluator
    selector: CheckpointSelector
    models: Models
    lifecycle: Lifecycle
    state: RunState
    """The current iteration, figures and evaluations. `snapshot` completes it from the other parts."""
    metrics_log: RunLog
    recorder: Recorder
    generator: RecordedGenerator
    collector: Collector
    start_time: float
    """The start of this process's run on the monotonic clock, in seconds."""
    pass_rates: PassRateHistory = field(default_factory=PassRateHistory)

    def __post_init__(self) -> None:
        self.method = method(self.config.method)
        self.directory = Path(self.config.run_dir)
        self.phase = self.residency.phase
        self._earlier_seconds = self.state.seconds
        """The time that earlier starts of the run took."""

    @property
    def iteration(self) -> int:
        return self.state.iteration

    @property
    def gate_is_open(self) -> bool:
        """Whether the policy may learn: the critic's last measured AUROC has reached `loop.gate`."""
        gate = self.config.loop.gate
        return not gate or (self.state.gate_value or 0.0) >= gate

    @property
    def has_ended(self) -> bool:
        """Whether the current iteration was evaluated as the last one."""
        return self.state.final_iteration == self.iteration

    @property
    def is_finished(self) -> bool:
        """Whether only the end is left: export, summary and report."""
        is_last = self.selector.has_stopped or self.iteration >= self.config.loop.iterations
        return is_last and self.has_ended and not self.lifecycle.in_stages and not self.lifecycle.unconcluded

    def snapshot(self) -> RunState:
        """Return what a checkpoint holds of the run as it is now. Not collective."""
        return replace(
            self.state,
            labeled_position=self.data.labeled.position,
            unlabeled_position=self.data.unlabeled.position,
            carried=tuple(self.collector.carried),
            examples_position=self.data.examples.position,
            grading_errors=self.grader.errors,
            grading_timeouts=self.grader.timeouts,
            optimizer_steps={name: trainer.steps for name, trainer in self.models.trainers.items()},
            selection=self.selector.selection,
            generation_figures=dict(self.generator.figures),
            expected_tokens=dict(self.collector.history.expected_tokens),
            pass_rates=self.pass_rates.copy(),
            seconds=self._earlier_seconds + time.monotonic() - self.start_time,
        )

    def begin_iteration(self, iteration: int) -> None:
        """Begin the next iteration. Raises Interrupted if the run was asked to stop."""
        self.lifecycle.begin_iteration(self.snapshot())
        self.state.iteration = self.generator.iteration = iteration

    def stage_steps(self, name: str, steps: int, save_every: int) -> Iterator[int]:
        """Yield the numbers, from 0, of the steps that a stage still has to make; save after every `save_every`.

        Raises Interrupted between two steps if the run was asked to stop.
        """
        for step in self.console.progress(self.lifecycle.remaining_steps(name, steps), name.replace("_", " ")):
            self.lifecycle.check_interruption()
            yield step
            self.lifecycle.end_stage_step(self.snapshot(), name, step + 1)
            if (step + 1) % save_every == 0:
                self.lifecycle.save_in_stage(self.snapshot())
        self.lifecycle.check_interruption()

    def interruptible(self) -> AbstractContextManager[None]:
        """Let generation in the block end early when the run is asked to stop (`Lifecycle.interruptible`)."""
        return self.lifecycle.interruptible(self.generator)

    def sync(self) -> None:
        """Copy the policy's current weights to the generator."""
        with self.phase("sync"):
            self.generator.load_weights()

    def evaluate(self, iteration: int, *, at_an_end: bool) -> dict[str, float]:
        """Evaluate the policy and put the generator to sleep; return the figures as metrics.

        The summary keeps those of the run's start and end.
        """
        with self.phase("evaluate"):
            results = self.evaluator.evaluate(self.generator, iteration, at_an_end)
        # Recording would do it too. Sleep empties the prefix cache, and a run must not depend on what it records.
        self.generator.sleep()
        self.recorder.record_evaluated(iteration, self.evaluator.sampled_questions)
        if at_an_end:
            self.state.final_iteration = iteration
            if iteration:
                self.state.final_evaluation = results
            else:
                self.state.initial_evaluation = results
        if iteration:
            self.console.say(evaluation_line(results))
        return evaluation_metrics(results)

    def select_checkpoint(self) -> Selection | None:
        """Select the best checkpoint with the current policy as a candidate; None where the recipe selects none."""
        if not self.config.checkpoint.select_best:
            return None
        kept = self.lifecycle.saver.iterations_to_keep(self.selector.selection.best)
        with self.phase("select_checkpoint"):
            selection = self.selector.select(self.collector, self.models.critic, self.iteration, kept)
        self.console.say(f"best checkpoint: iteration {selection.best}, {selection.reason}")
        if selection.stopped:
            self.console.say(f"stopped at iteration {self.iteration}: {selection.stopped}")
        return selection

    def log(
        self,
        stage: str,
        metrics: dict[str, float],
        *,
        iteration: int | None = None,
        selection: Selection | None = None,
    ) -> None:
        """Log one line of metrics, of the current iteration unless another is named."""
        self.lifecycle.saver.check()
        self.metrics_log.write(stage, metrics, self.iteration if iteration is None else iteration, selection)

    def save(self) -> None:
        """Save a checkpoint of the current iteration, and remove rollouts that no later start will read."""
        self.lifecycle.save(self.snapshot())
        newest = self.lifecycle.saver.newest_iteration()
        keeps_rollouts = self.config.generation.keep_rollouts or self.config.generation.replay
        if self.console.is_first and newest is not None and not keeps_rollouts:
            self.generator.prune(newest)

    def save_interrupted(self, reason: str) -> None:
        """Save a checkpoint that the next start can resume from, and write a file that says why it was interrupted."""
        outcome = self.lifecycle.save_interrupted()
        self.console.warn(f"interrupted by {reason}: {outcome}")
        if self.console.is_first:
            interrupted_mark(self.directory).write_text(f"{reason}\n")
        self._leave_directory()

    def finish(self) -> None:
        """Export the selected checkpoint's policy, write and print summary.json, then make the report.

        The report comes last, because a failure there must not cost the export.
        """
        self.grader.close()
        self.lifecycle.saver.wait()
        if self.config.export:
            with self.phase("export"), expect_pace(Pace.untimed):
                if self.console.is_first:
                    export_run(self.directory)
                barrier()  # the watchdog would take a rank that writes alone for one that hangs
        if self.console.is_first:
            print(write_summary(self.directory, summary(self.config, self.snapshot())), flush=True)
            self.metrics_log.close()
            if warning := report_in_subprocess(self.directory):
                self.console.warn(warning)
            else:
                self.console.say(f"report of the run: {self.directory / REPORT_NAME}")
        self._leave_directory()
        topology.shutdown()

    def _leave_directory(self) -> None:
        """Unlock the run directory after all files are written. Collective."""
        if self.lock:
            self.lock.release()
        barrier()  # srun ends every rank when the first exits, and the first may hold the others' store
