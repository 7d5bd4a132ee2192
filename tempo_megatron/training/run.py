"""A run: what the loop works with, built from the config, and the directory that it lives in."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import Config, CriticTraining, LearnsFrom, Precision
from tempo_megatron.data import fingerprint
from tempo_megatron.data.templates import end_token_ids
from tempo_megatron.generation.engine import Generator
from tempo_megatron.generation.recorded import RecordedGenerator
from tempo_megatron.grading import Grader
from tempo_megatron.megatron import topology
from tempo_megatron.megatron.checkpointing import saver
from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE
from tempo_megatron.metrics.alarms import arithmetic_alarms
from tempo_megatron.metrics.plots import draw_in_subprocess
from tempo_megatron.metrics.writers import MetricsLog
from tempo_megatron.run_dir.layout import interrupted_mark, open_run, saved_checkpoint, write_summary
from tempo_megatron.run_dir.lock import RunDirectoryInUse, RunLock
from tempo_megatron.supervision.interruption import InterruptionRequest
from tempo_megatron.supervision.watchdog import Watchdog
from tempo_megatron.training import banner, run_data
from tempo_megatron.training.export import export_run, summary
from tempo_megatron.training.lifecycle import Lifecycle, State
from tempo_megatron.training.models import Models
from tempo_megatron.training.phases.advantages import Estimate, PolicyRollouts
from tempo_megatron.training.phases.collect import Collected, Collector
from tempo_megatron.training.phases.evaluate import Evaluator
from tempo_megatron.training.phases.select_checkpoint import Chooser
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.utils.distributed import barrier, from_first
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

_COUNTS = ("iteration", "lines", "labeled", "unlabeled", "examples")
_OTHERS: State = {"seconds": 0.0, "grading": [0, 0], "optimizer_steps": {}, "gate_value": None, "figures": {}}
_BEGINNING: State = dict.fromkeys(_COUNTS, 0) | _OTHERS
"""what `Run._present` gives of a run that has done nothing"""


class Run:
    """Models, generator, data and directory of a run, resumed from its newest complete checkpoint where it has one.

    `watched`: a rank that hangs ends the job, from here on until `watchdog` is stopped.
    """

    def __init__(self, config: Config, generator: Any = None, *, watched: bool = False) -> None:
        self.config = config
        self.method = method(config.method)
        self.directory = Path(config.run_dir)
        self._started = time.monotonic()
        limit = max(config.faults.limit_seconds(phase) for phase in ("generate", "m_step"))
        meeting = config.preflight.presence_seconds
        self.topology = topology.initialize(config.parallel, config.seed, limit, meeting)
        self.turns = DeviceResidency(self.topology.device)
        self.phase = self.turns.phase
        self.watchdog = Watchdog.of_this_job(self.turns.place, config.faults, self.directory / "flight")
        self.is_first = self.topology.rank == 0
        if watched:
            self.watchdog.start()
        with self.phase("start"), expect_pace(Pace.untimed):
            self._prepare(generator)

    def _prepare(self, generator: Any) -> None:
        config = self.config
        self._occupancy = RunLock(self.directory) if self.is_first else None
        if self.is_first:
            self.say(banner.text(config, self.topology))
        # Another node may see the directory a little later: one rank looks for all.
        self._saved = from_first(saved_checkpoint(self.directory) if self.is_first else None)
        self.tokenizer = AutoTokenizer.from_pretrained(self.hf_path)
        self.data = run_data.load_run_data(config, self.tokenizer)
        self._load_data()
        self.models = self._build_models()
        self.policy, self.critic, self.reference = self.models.policy, self.models.critic, self.models.reference
        self.trainers, self.scores = self.models.trainers, self.models.scores
        self._enter()
        checkpoints, target_range = self.directory / "checkpoints", config.critic.target_range
        model, limit = Path(config.model.hf_path), self.topology.collective_limit
        run_saver = saver.Saver(checkpoints, config.checkpoint, model, target_range, limit)
        self.course = Lifecycle(run_saver, self.models, InterruptionRequest.of_this_job(), self._present, self.phase)
        self._resume()
        self.log_file = MetricsLog(self.directory, config.logging, self._state["lines"]) if self.is_first else None
        self.generator = self.turns.generator = self._recorded(generator)
        self.generator.figures = self._state["figures"]
        self.generator.iteration = self.iteration
        self.collector = Collector(
            config, self.generator, self.grader, self.labeled, self.unlabeled, self.data.set_aside, self.phase
        )
        if not self.course.in_stages:
            self.sync()

    def _enter(self) -> None:
        """Make the directory this run's, before anything in it is touched. Collective. Raises Occupied where another
        run works in it."""
        refusal = contents = ""
        if self._occupancy:
            try:
                self._occupancy.take()
                open_run(self.config)
                accepted, contents = fingerprint.keep_record(self.config, self.data.learned)
                for line in accepted:
                    self.say(line)
            except RunDirectoryInUse as occupied:
                refusal = str(occupied)
        refusal, self._data_contents = from_first((refusal, contents))
        if refusal:
            raise RunDirectoryInUse(refusal)

    def _leave(self) -> None:
        """The directory is free for another run, and all is written. Collective."""
        if self._occupancy:
            self._occupancy.leave()
        barrier()  # srun ends every rank when the first exits, which may hold the others' store

    def _load_data(self) -> None:
        config, questions = self.config, self.data.questions
        self.labeled, self.unlabeled, self.examples = self.data.labeled, self.data.unlabeled, self.data.examples
        valued = self.policy_learns_unlabeled and config.critic.training is not CriticTraining.none
        adapted_to = questions.sets["unlabeled"].prompts if valued else []
        self.chooser = Chooser(self.directory / "candidates", adapted_to, config.checkpoint)
        if self.is_first:
            for line in self.data.lines():
                self.say(line)
        self.grader = Grader(self._decode, config.grading)
        self.evaluator = Evaluator(
            questions.with_answers(),
            questions.answers,
            self.grader.twin(),
            self._decode,
            config.evaluation,
            config.generation.max_response_tokens,
            self.directory / "samples" if self.is_first else None,
        )

    def _build_models(self) -> Models:
        return Models(self.config, self.topology, self.turns, self._saved)

    def _build_generator(self) -> Generator:
        config = self.config
        tensor_size = config.generation.tensor_parallel_size or config.parallel.tensor_model_parallel_size
        return Generator(
            self.hf_path,
            config.generation,
            tensor_parallel_size=tensor_size,
            max_model_len=config.data.max_prompt_tokens + config.generation.max_response_tokens,
            dtype=torch.bfloat16 if config.model.precision is Precision.bf16 else torch.float32,
            eos_token_ids=end_token_ids(config.data, self.tokenizer),
            seed=config.seed,
            weights=self.models.policy_tensors,
        )

    def _recorded(self, engine: Any) -> RecordedGenerator:
        """The generator, or one that was given, whose rollouts are kept; of a replay, the rollouts alone."""
        if self.config.generation.replay:
            return RecordedGenerator(None, Path(self.config.generation.replay))
        return RecordedGenerator(engine or self._build_generator(), self.directory / "rollouts")

    def _resume(self) -> None:
        """Where the newest checkpoint left the run, or its beginning."""
        found, lines = self.course.resume()
        self._saved = self.course.resumed_from
        self._state: State = _BEGINNING | {"choice": self.chooser.state} | found
        if self.is_first:
            for line in lines:
                self.say(line)
        self.iteration: int = self._state["iteration"]
        self.labeled.position = self._state["labeled"]
        self.unlabeled.position = self._state["unlabeled"]
        self.examples.position = self._state["examples"]
        self.grader.errors, self.grader.timeouts = self._state["grading"]
        for name, steps in self._state["optimizer_steps"].items():
            if name in self.trainers:  # a critic that is frozen by now has no steps to count
                self.trainers[name].steps = steps
        self.gate_value: float | None = self._state["gate_value"]
        self.chooser.resume(self._state["choice"])
        if self._state.get("data", self._data_contents) != self._data_contents:
            self.chooser.forget()
        if self.is_over and self.is_first:
            self.say(
                f"{self.directory} is finished, at iteration {self.iteration}: nothing is trained; export, plots and "
                "summary are made again. More loop.iterations go on with it, another run_dir begins anew"
            )

    @property
    def hf_path(self) -> Path:
        """Where config.json and tokenizer of the model are: in the checkpoint that the run goes on from, if any."""
        return self._saved / HUGGING_FACE if self._saved else Path(self.config.model.hf_path)

    @property
    def policy_learns_labeled(self) -> bool:
        return self.config.policy.learns_from is not LearnsFrom.unlabeled

    @property
    def policy_learns_unlabeled(self) -> bool:
        return self.config.policy.learns_from is not LearnsFrom.labeled

    @property
    def gate_is_open(self) -> bool:
        """Whether the policy may learn: the critic's last measured AUROC has reached `loop.gate`."""
        return not self.config.loop.gate or (self.gate_value or 0.0) >= self.config.loop.gate

    @property
    def stopped(self) -> bool:
        """The stopping rule has ended the run."""
        return self.chooser.state["stopped"] is not None

    @property
    def is_over(self) -> bool:
        """Nothing is left but to `finish`."""
        done = self.stopped or self.iteration >= self.config.loop.iterations
        return done and self.has_ended and not self.course.in_stages and not self.course.unconcluded

    @property
    def has_ended(self) -> bool:
        """The present iteration has been evaluated as the last one, and saved."""
        return bool(self._state.get("final_iteration", 0) == self.iteration)

    @property
    def evaluated_at_start(self) -> bool:
        return "initial" in self._state

    def seed(self, iteration: int, step: int) -> tuple[int, ...]:
        """What an update's shuffling is hashed from."""
        return (self.config.seed, iteration, step) if step else (self.config.seed, iteration)

    def sync(self) -> None:
        """The policy's present weights into the generator."""
        with self.phase("sync"):
            self.generator.load_weights()

    def count(self, drawn: Collected) -> dict[str, float]:
        """Figures of the rollouts as they were drawn."""
        found = {
            "data/labeled_passes": self.labeled.passes,
            "data/unlabeled_passes": self.unlabeled.passes,
            "grading/errors": float(self.grader.errors),
            "grading/timeouts": float(self.grader.timeouts),
        }
        if drawn.labeled:
            truncated = sum(rollout.truncated for rollout in drawn.labeled)
            found["data/labeled_truncated"] = truncated / len(drawn.labeled)
            found["data/uniform_prompts_replaced"] = float(drawn.uniform)
        return found

    def observe(self, rows: PolicyRollouts, found: Estimate) -> dict[str, float]:
        """For the log alone: what the unlabeled rollouts were worth, by answers that only evaluation has."""
        hidden = (~found.experience.labeled).nonzero()[:, 0].tolist()
        wrong = found.experience.wrong if "values" in self.method.needs else 0.0
        rewards = (found.rewards - wrong) / (1 - wrong)
        with self.phase("observe"):
            return self.evaluator.observe(
                [rows.rollouts[row] for row in hidden], [float(rewards[row]) for row in hidden]
            )

    def consider(self) -> dict[str, Any]:
        """The present policy as a candidate for the best checkpoint, where one is chosen; the choice and its reason for
        the log. Collective."""
        if not self.config.checkpoint.select_best:
            return {}
        kept = self.course.saver.kept(self.chooser.state["best"])
        with self.phase("select_checkpoint"):
            self.chooser.consider(self.collector, self.critic, self.iteration, kept)
        choice = self.chooser.state
        if self.is_first:
            self.say(f"best checkpoint: iteration {choice['best']}, {choice['reason']}")
            if choice["stopped"]:
                self.say(f"stopped at iteration {self.iteration}: {choice['stopped']}")
        return {f"selection/{name}": value for name, value in choice.items()}

    def record_evaluation(self, iteration: int, at_an_end: bool) -> dict[str, float]:
        """Evaluate; both ends are kept for the summary. Returns the figures as metrics."""
        with self.phase("evaluate"):
            results = self.evaluator.evaluate(self.generator, iteration, at_an_end)
        if at_an_end:
            self._state["final" if iteration else "initial"] = results
            self._state["final_iteration"] = iteration
        flat = {f"evaluation/{name}/{key}": value for name, row in results.items() for key, value in row.items()}
        if iteration == 0:
            self.log("train", flat)
        elif self.is_first:
            sets = {f"{name}/{key}": row[key] for name, row in results.items() if "/" not in name for key in row}
            shown = {name: value for name, value in sets.items() if "@" in name and "error" not in name}
            self.say("evaluation  " + "  ".join(f"{name} {value:.3f}" for name, value in shown.items()))
        return flat

    def log(self, stage: str, metrics: dict[str, Any], iteration: int | None = None) -> None:
        """One line of metrics, of the present iteration unless another is given.

        Timings and memory, which no run repeats exactly, have names of their own.
        """
        self.course.saver.check()
        taken = self.turns.taken()
        self._state["lines"] += 1
        number = self.iteration if iteration is None else iteration
        drawn = {f"generation/{name}": value for name, value in self.generator.take_figures().items()}
        alarms, lines = arithmetic_alarms(metrics, self.config)
        metrics = metrics | drawn | alarms
        if self.log_file:
            for line in lines:
                self.say(f"iteration {self.iteration}: {line}")
            self.log_file.write({"stage": stage, "iteration": number, **metrics, **taken})
            if stage == "train" and self.iteration:
                shown = ("critic/correct", "critic/auroc_within_prompts", "policy/reward", "policy/clip_fraction")
                figures = "  ".join(f"{name} {metrics[name]:.3f}" for name in shown if name in metrics)
                self.say(f"iteration {self.iteration}/{self.config.loop.iterations}  {figures}")
        barrier()  # a rank that writes alone would seem to hang

    def say(self, text: str) -> None:
        """Log a line, or lines, at level INFO."""
        logger.info(text)

    def progress[Item](self, items: Iterable[Item], description: str) -> Iterator[Item]:
        """A progress bar over items, on one rank."""
        quiet = 0.1 if sys.stderr.isatty() else 10.0
        yield from tqdm(items, description, disable=not self.is_first, mininterval=quiet)

    def stage(self, name: str, steps: int, save_every: int) -> Iterator[int]:
        """The steps of a stage that are still to be made, counted from 0; every so many are saved. Raises Interrupted
        between two where the run was asked to stop."""
        for step in self.progress(self.course.remaining(name, steps), name.replace("_", " ")):
            self.course.pause()
            yield step
            self.course.reached_in_stage(name, step + 1)
            if (step + 1) % save_every == 0:
                self.course.save_in_stage()
        self.course.pause()

    def begin(self, iteration: int) -> None:
        """The next iteration. Raises Interrupted where the run was asked to stop."""
        self.course.begin()
        self.iteration = self.generator.iteration = iteration

    def may_be_interrupted(self) -> AbstractContextManager[None]:
        """Generation that a run which is asked to stop gives up."""
        return self.course.may_be_interrupted(self.generator)

    def save(self) -> None:
        """A checkpoint of the present iteration; rollouts that it is past may go."""
        self.course.save()
        newest = self.course.saver.newest_iteration()
        kept = self.config.generation.keep_rollouts or self.config.generation.replay
        if self.is_first and newest is not None and not kept:
            self.generator.prune(newest)

    def save_interrupted(self, reason: str) -> None:
        """Save what a run that goes on begins with, and leave a mark that it was interrupted."""
        done = self.course.save_interrupted()
        if self.is_first:
            self.say(f"interrupted by {reason}: {done}")
            interrupted_mark(self.directory).write_text(f"{reason}\n")
        self._leave()

    def _present(self) -> State:
        """What a checkpoint holds of the run, beside its models and its course."""
        return self._state | {
            "iteration": self.iteration,
            "labeled": self.labeled.position,
            "unlabeled": self.unlabeled.position,
            "examples": self.examples.position,
            "grading": [self.grader.errors, self.grader.timeouts],
            "optimizer_steps": {name: trainer.steps for name, trainer in self.trainers.items()},
            "gate_value": self.gate_value,
            "choice": self.chooser.state | {},
            "data": self._data_contents,
            "figures": dict(self.generator.figures),
            "seconds": self._elapsed(),
        }

    def _elapsed(self) -> float:
        seconds: float = self._state["seconds"]
        return seconds + time.monotonic() - self._started

    def finish(self) -> None:
        """Export the chosen checkpoint's policy, write summary.json, then draw the plots: what is there by then is not
        lost to what fails after it."""
        self.grader.close()
        self.course.saver.wait()
        if self.config.export:
            with self.phase("export"), expect_pace(Pace.untimed):
                if self.is_first:
                    export_run(self.directory)
                barrier()  # a rank that writes alone would seem to hang
        if self.is_first:
            self.say(write_summary(self.directory, summary(self.config, self._present())))
        if self.log_file:
            self.log_file.close()
            if warning := draw_in_subprocess(self.directory):
                self.say(warning)
        self._leave()
        topology.shutdown()

    def _decode(self, ids: Iterable[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
