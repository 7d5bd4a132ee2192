"""A run: what the loop works with, built from the config, and the directory that it lives in."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from checkpoints_convert import decoder, hf_files
from checkpoints_convert.families import family
from checkpoints_convert.hf_files import Description
from checkpoints_convert.mapping import OUTPUT_BIAS, Role
from tempo_megatron import banner
from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import Config, CriticTraining, LearnsFrom, Precision
from tempo_megatron.data.questions import read_questions, set_aside
from tempo_megatron.data.streams import Stream
from tempo_megatron.data.templates import end_token_ids
from tempo_megatron.data.types import Prompt
from tempo_megatron.generation.engine import GenerationStopped, Generator
from tempo_megatron.generation.recorded import RecordedGenerator
from tempo_megatron.grading import Grader
from tempo_megatron.megatron import checkpoint, checkpoint_files, model, saving, topology, weights
from tempo_megatron.megatron.offload import Kind, check_host_memory
from tempo_megatron.megatron.trainer import Scorer, Trainer
from tempo_megatron.metrics.alarms import raised
from tempo_megatron.metrics.plots import plot_run
from tempo_megatron.metrics.writers import MetricsLog
from tempo_megatron.phases.choose import Chooser
from tempo_megatron.phases.collect import Collected, Collector
from tempo_megatron.phases.estimate import Estimate, PolicyRollouts
from tempo_megatron.phases.evaluate import Evaluator
from tempo_megatron.phases.scoring import policy_scores
from tempo_megatron.phases.warm_start import Example
from tempo_megatron.progress import Pace, at
from tempo_megatron.ranks import barrier
from tempo_megatron.run_directory import interrupted_mark, open_run
from tempo_megatron.supervision.interruption import Interrupted, Interruption
from tempo_megatron.supervision.watchdog import Watchdog
from tempo_megatron.turns import Turns

_REFERENCE = "reference"


class Run:
    """Models, generator, data and directory of a run, resumed from its newest complete checkpoint where it has one.

    `watched`: a rank that hangs ends the job, from here on until `watchdog` is stopped.
    """

    def __init__(self, config: Config, generator: Any = None, *, watched: bool = False) -> None:
        self.config = config
        self.method = method(config.method)
        self.directory = Path(config.run_dir)
        self._started = time.monotonic()
        limit = max(config.faults.limit_seconds(phase) for phase in ("generate", "refine"))
        self.topology = topology.initialize(config.parallel, config.seed, limit)
        self.turns = Turns(self.topology.device)
        self.phase = self.turns.phase
        self.interruption = Interruption.of_this_job()
        self.watchdog = Watchdog.of_this_job(self.turns.place, config.faults, self.directory / "flight")
        self.is_first = self.topology.rank == 0
        if watched:
            self.watchdog.start()
        with self.phase("start"), at(Pace.untimed):
            self._prepare(generator)

    def _prepare(self, generator: Any) -> None:
        config = self.config
        if self.is_first:
            open_run(config)
            self.say(banner.text(config, self.topology))
        self.hf_path = Path(config.model.hf_path)
        self.tokenizer = AutoTokenizer.from_pretrained(self.hf_path)
        self._load_data()
        self._build_models()
        self._resume()
        self.log_file = MetricsLog(self.directory, config.logging, self._state["lines"]) if self.is_first else None
        self.generator = self.turns.generator = self._recorded(generator)
        self.generator.figures = self._state["figures"]
        self.generator.iteration = self.iteration
        self.collector = Collector(
            config, self.generator, self.grader, self.labelled, self.unlabelled, self._set_aside, self.phase
        )
        if self.resumed:
            self.sync()

    def _load_data(self) -> None:
        questions = read_questions(self.config.data, self.tokenizer)
        seed, sets, evaluated = self.config.seed, questions.sets, questions.with_answers()
        self._set_aside = set_aside(sets["labelled"], self.config.calibration.questions)
        labelled, taught = (sets[name].without(self._set_aside) for name in ("labelled", "warm_start"))
        self.labelled = Stream(labelled.prompts, seed, "labelled", labelled.weights)
        self.unlabelled = Stream(sets["unlabelled"].prompts, seed, "unlabelled", sets["unlabelled"].weights)
        self.chooser = Chooser(self.directory / "candidates", sets["unlabelled"].prompts, self.config.checkpoint)
        self.examples = Stream([self._example(prompt) for prompt in taught.prompts], seed, "warm_start", taught.weights)
        if self.is_first:
            for name, made in sets.items():
                known = f", {len(evaluated.get(name, ()))} evaluated" if name in ("unlabelled", "held_out") else ""
                self.say(f"data.{name}: {len(made.prompts)} prompts{known} ({made.left_out()})")
        self.grader = Grader(self._decode, self.config.grading)
        self.evaluator = Evaluator(
            evaluated,
            questions.answers,
            self.grader.twin(),
            self._decode,
            self.config.evaluation,
            self.config.generation.max_response_tokens,
            self.directory / "samples" if self.is_first else None,
        )

    def _example(self, prompt: Prompt) -> Example:
        """What the warm start learns: a labelled question's answer, and to end after it."""
        answer = str((prompt.answer or {})["answer"])
        ids = self.tokenizer.encode(answer, add_special_tokens=False)
        return prompt.token_ids, (*ids, self.tokenizer.eos_token_id)

    def _build_models(self) -> None:
        config, place = self.config, self.topology
        described = hf_files.read_config(self.hf_path)
        self.settings = family(described).settings(described)
        self.entries = decoder.policy(self.settings)
        policy = self._build("policy", config.policy.checkpoint)
        self.policy = Trainer(policy, config.policy.optimizer, config, place, config.policy.micro_batch_tokens)
        self._introduce("policy", self.policy)
        self.trainers = {"policy": self.policy}
        self.critic: Trainer | None = None
        if config.critic.training is not CriticTraining.none:
            critic = self._build("critic", config.critic.checkpoint)
            self.critic = Trainer(critic, config.critic.optimizer, config, place, config.critic.micro_batch_tokens)
            self.trainers["critic"] = self.critic
            self._introduce("critic", self.critic)
        self.reference: Scorer | None = None
        if config.policy.kl_coefficient:
            reference = self._build("policy", config.policy.checkpoint)
            self.reference = Scorer(reference, config, place, config.policy.micro_batch_tokens)
            self._introduce("reference", self.reference)
        self.scores = policy_scores(self.settings.vocab_size, config.generation.temperature, place)

    def _introduce(self, name: str, model: Scorer) -> None:
        """Let a model take its turns; it rests at once, so that the next finds room."""
        model.name = name
        self.turns.models[name] = model
        check_host_memory({name: made.offloader for name, made in self.turns.models.items()}, self.config.memory)
        model.rest()

    def _build(self, role: Role, start: str) -> Any:
        """A model with the weights that the run starts from: those of a checkpoint, or of model.hf_path."""
        bias = bool(start) and OUTPUT_BIAS in checkpoint_files.Reader(Path(start), role).descriptions
        module = model.build(role, self.settings, self.config, self.topology, head_bias=bias)
        if start:
            checkpoint.load_weights(Path(start), role, module)
        else:
            read = hf_files.Reader(self.hf_path)
            weights.load(module, self.entries, read, self.topology, critic=role == "critic")
        return module

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
            weights=self._policy_tensors,
        )

    def _recorded(self, engine: Any) -> RecordedGenerator:
        """The generator, or one that was given, whose rollouts are kept; of a replay, the rollouts alone."""
        if self.config.generation.replay:
            return RecordedGenerator(None, Path(self.config.generation.replay))
        return RecordedGenerator(engine or self._build_generator(), self.directory / "rollouts")

    def _policy_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's present weights as the generator and an export take them. Collective."""
        with self.policy.awake(Kind.weights):
            yield from weights.export(self.policy.module, self.entries, self.topology)

    def _resume(self) -> None:
        self._saver = saving.Saver(
            self.directory / "checkpoints", self.config.checkpoint, self.hf_path, self.config.critic.target_range
        )
        found, passed_over = saving.newest(self._saver.directory)
        self.resumed = found is not None
        self._state: dict[str, Any] = {
            "iteration": 0,
            "lines": 0,
            "labelled": 0,
            "unlabelled": 0,
            "seconds": 0.0,
            "grading": [0, 0],
            "optimizer_steps": {},
            "gate_value": None,
            "choice": self.chooser.state,
            "figures": {},
            "unconcluded": None,
            "save_seconds": 0.0,
            "stretch_seconds": 0.0,
        }
        if found:
            self._state |= saving.read_state(found)
            checkpoint.load(found, self.trainers)
            if self.reference:
                with self.reference.awake(changes=True):
                    checkpoint.load_weights(self._saver.directory / _REFERENCE, "policy", self.reference.module)
        if self.is_first:
            for line in [*passed_over, *([f"resumed from {found}"] if found else [])]:
                self.say(line)
        self.iteration: int = self._state["iteration"]
        self._boundary: dict[str, Any] | None = None
        self._saved = self.iteration if found else -1
        self.labelled.position = self._state["labelled"]
        self.unlabelled.position = self._state["unlabelled"]
        self.grader.errors, self.grader.timeouts = self._state["grading"]
        for name, steps in self._state["optimizer_steps"].items():
            self.trainers[name].steps = steps
        self.gate_value: float | None = self._state["gate_value"]
        self.chooser.resume(self._state["choice"])
        self.unconcluded: dict[str, Any] | None = self._state["unconcluded"]
        self.interruption.allow(self._state["save_seconds"], self._state["stretch_seconds"])

    @property
    def needed_critic(self) -> Trainer:
        """The critic of a method that has one."""
        if self.critic is None:
            raise RuntimeError(f"method {self.config.method} with critic.training none has no critic")
        return self.critic

    @property
    def policy_learns_labelled(self) -> bool:
        return self.config.policy.learns_from is not LearnsFrom.unlabelled

    @property
    def policy_learns_unlabelled(self) -> bool:
        return self.config.policy.learns_from is not LearnsFrom.labelled

    @property
    def gate_is_open(self) -> bool:
        """Whether the policy may learn: the critic's last measured AUROC has reached `loop.gate`."""
        return not self.config.loop.gate or (self.gate_value or 0.0) >= self.config.loop.gate

    @property
    def stopped(self) -> bool:
        """The stopping rule has ended the run."""
        return self.chooser.state["stopped"] is not None

    def seed(self, iteration: int, step: int) -> tuple[int, ...]:
        """What an update's shuffling is hashed from."""
        return (self.config.seed, iteration, step) if step else (self.config.seed, iteration)

    def sync(self) -> None:
        """The policy's present weights into the generator."""
        with self.phase("sync"):
            self.generator.load_weights()

    def copy_policy_to_others(self) -> None:
        """The policy's present weights into the critic, whose optimizer starts afresh, and into the reference."""
        with self.phase("copy"), self.policy.awake(Kind.weights):
            if self.critic:
                with self.critic.awake(Kind.weights, changes=True):
                    weights.copy_backbone(self.policy.module, self.critic.module)
                    self.critic.reset_optimizer(self.config.critic.optimizer)
            if self.reference:
                with self.reference.awake(changes=True):
                    self.reference.module.load_state_dict(self.policy.module.state_dict())

    def keep_reference(self) -> None:
        """Save the reference for the run to resume with: what it was made from may change or go. Collective."""
        if self.reference:
            with self.phase("save"), at(Pace.untimed), self.reference.awake():
                checkpoint.save_weights(self._saver.directory / _REFERENCE, "policy", self.reference.module)

    def count(self, drawn: Collected) -> dict[str, float]:
        """Figures of the rollouts as they were drawn."""
        found = {
            "data/labelled_passes": self.labelled.passes,
            "data/unlabelled_passes": self.unlabelled.passes,
            "grading/errors": float(self.grader.errors),
            "grading/timeouts": float(self.grader.timeouts),
        }
        if drawn.labelled:
            truncated = sum(rollout.truncated for rollout in drawn.labelled)
            found["data/labelled_truncated"] = truncated / len(drawn.labelled)
            found["data/uniform_prompts_replaced"] = float(drawn.uniform)
        return found

    def observe(self, rows: PolicyRollouts, found: Estimate) -> dict[str, float]:
        """For the log alone: what the unlabelled rollouts were worth, by answers that only evaluation has."""
        hidden = (~found.experience.labelled).nonzero()[:, 0].tolist()
        wrong = found.experience.wrong if "values" in self.method.needs else 0.0
        rewards = (found.rewards - wrong) / (1 - wrong)
        with self.phase("observe"):
            return self.evaluator.observe([rows.rollouts[at] for at in hidden], [float(rewards[at]) for at in hidden])

    def consider(self) -> dict[str, Any]:
        """The present policy as a candidate for the best checkpoint, where one is chosen; the choice and its reason for
        the log. Collective."""
        if not self.config.checkpoint.choose:
            return {}
        kept = self._saver.kept(self.chooser.state["best"])
        with self.phase("choose"):
            reason = self.chooser.consider(self.collector, self.critic, self.iteration, kept)
        best, stopped = self.chooser.state["best"], self.chooser.state["stopped"]
        if self.is_first:
            self.say(f"best checkpoint: iteration {best}, {reason}")
            if stopped:
                self.say(f"stopped at iteration {self.iteration}: {stopped}")
        return {f"choice/{name}": value for name, value in self.chooser.state.items()} | {"choice/reason": reason}

    def record_evaluation(self, iteration: int, at_an_end: bool) -> dict[str, float]:
        """Evaluate; both ends are kept for the summary. Returns the figures as metrics."""
        with self.phase("evaluate"):
            results = self.evaluator.evaluate(self.generator, iteration, at_an_end)
        if at_an_end:
            self._state["final" if iteration else "initial"] = results
        flat = {f"evaluation/{name}/{key}": value for name, row in results.items() for key, value in row.items()}
        if iteration == 0:
            self.log("train", flat)
        elif self.is_first:
            shown = {k.removeprefix("evaluation/"): v for k, v in flat.items() if "@" in k and "error" not in k}
            self.say("evaluation  " + "  ".join(f"{name} {value:.3f}" for name, value in shown.items()))
        return flat

    def log(self, stage: str, metrics: dict[str, Any], iteration: int | None = None) -> None:
        """One line of metrics, of the present iteration unless another is given.

        Timings and memory, which no run repeats exactly, have names of their own.
        """
        self._saver.check()
        taken = self.turns.taken()
        self._state["lines"] += 1
        number = self.iteration if iteration is None else iteration
        drawn = {f"generation/{name}": value for name, value in self.generator.take_figures().items()}
        alarms, lines = raised(metrics, self.config)
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
        """Lines on standard output, above whatever progress bar is there."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def progress[Item](self, items: Iterable[Item], description: str) -> Iterator[Item]:
        """A progress bar over items, on one rank."""
        quiet = 0.1 if sys.stderr.isatty() else 10.0
        yield from tqdm(items, description, disable=not self.is_first, mininterval=quiet)

    def begin(self, iteration: int) -> None:
        """The next iteration, from a state that a run which is interrupted can be saved in."""
        self._boundary = self._present()
        self.pause()
        self.iteration = self.generator.iteration = iteration

    def reached(self, metrics: dict[str, Any]) -> None:
        """Both models have learnt and the generator is in step: what follows only measures, and `metrics` wait for
        it. A run that is interrupted here concludes the iteration when it resumes."""
        stretch = time.monotonic() - self._could_be_interrupted
        self._state["stretch_seconds"] = max(self._state["stretch_seconds"], stretch)
        self.interruption.allow(self._state["save_seconds"], self._state["stretch_seconds"])
        self._boundary = self._present() | {"unconcluded": metrics}
        self.pause()

    @contextlib.contextmanager
    def may_be_interrupted(self) -> Iterator[None]:
        """Generation that ends early, as Interrupted, when the run is asked to stop: nothing has been learnt since the
        boundary that would be saved."""
        self.generator.stop_when(self.interruption.asked)
        try:
            yield
        except GenerationStopped as stopped:
            raise Interrupted(self.interruption.agreed()) from stopped
        finally:
            self.generator.stop_when(None)
        self._could_be_interrupted = time.monotonic()

    def pause(self) -> None:
        """Raise Interrupted where the run was asked to stop. Collective."""
        reason = self.interruption.agreed()
        if reason:
            raise Interrupted(reason)

    def save_interrupted(self, reason: str) -> None:
        """Save the boundary that the run was interrupted after. A run that has none yet starts over."""
        if self._boundary is None:
            if self.is_first:
                again = "goes on" if self.resumed else "begins anew"
                self.say(f"interrupted by {reason} before there was anything new to save: the next start {again}")
        else:
            self.iteration = self._boundary["iteration"]
            if self._boundary["unconcluded"] or self.iteration != self._saved:
                self._save(self._boundary)
            if self.is_first:
                self.say(f"interrupted by {reason}: saved iteration {self.iteration}; the same command resumes")
        self._saver.wait()
        if self.is_first:
            interrupted_mark(self.directory).touch()
        barrier()  # srun ends every rank when the first exits: none does before all is written

    def save(self) -> None:
        """A checkpoint of the present iteration."""
        self._save(self._present())

    def _present(self) -> dict[str, Any]:
        """All that a checkpoint holds beside models."""
        return self._state | {
            "iteration": self.iteration,
            "labelled": self.labelled.position,
            "unlabelled": self.unlabelled.position,
            "grading": [self.grader.errors, self.grader.timeouts],
            "optimizer_steps": {name: trainer.steps for name, trainer in self.trainers.items()},
            "gate_value": self.gate_value,
            "choice": self.chooser.state | {},
            "figures": dict(self.generator.figures),
            "unconcluded": None,
            "seconds": self._elapsed(),
        }

    def _save(self, state: dict[str, Any]) -> None:
        begun = time.monotonic()
        with self.phase("save"), at(Pace.untimed):
            self._saver.save(state["iteration"], self.trainers, state, state["choice"]["best"])
        self._saved = state["iteration"]
        self._state["save_seconds"] = time.monotonic() - begun
        self.interruption.allow(self._state["save_seconds"], self._state["stretch_seconds"])
        if self.is_first and not self.config.generation.keep_rollouts and not self.config.generation.replay:
            # What an unconcluded iteration is measured by is still to be read.
            self.generator.prune(self._saver.newest_iteration() - bool(state["unconcluded"]))

    def _elapsed(self) -> float:
        seconds: float = self._state["seconds"]
        return seconds + time.monotonic() - self._started

    def finish(self) -> None:
        """Export the policy, draw the plots, write summary.json."""
        self.grader.close()
        self._saver.wait()
        export = self.directory / "hf"
        if self.config.export:
            self.export_policy(export)
        if self.log_file:
            self.log_file.close()
            plot_run(self.directory)
            summary = {
                "initial": self._state["initial"],
                "final": self._state.get("final", self._state["initial"]),
                "iterations": self.iteration,
                "method": self.config.method,
                "best_iteration": self.chooser.state["best"],
                "stopped": self.chooser.state["stopped"],
                "seconds": round(self._elapsed(), 1),
                "hf_export": str(export) if self.config.export else None,
            }
            aside = self.directory / ".summary.json"
            aside.write_text(json.dumps(summary, indent=2) + "\n")
            shutil.move(aside, self.directory / "summary.json")
            self.say(json.dumps(summary, indent=2))
        barrier()  # where the first rank holds the others' store, or srun waits for none
        topology.shutdown()

    def export_policy(self, directory: Path) -> None:
        """The policy as a Hugging Face directory, written by one rank as its tensors are gathered. Collective."""
        with self.phase("export"), at(Pace.untimed):
            # For good: NumPy, which writes a CPU's tensors, makes their storage one that cannot be resized.
            self.policy.offloader.wake(Kind.weights)
            self._write_policy(directory)

    def _write_policy(self, directory: Path) -> None:
        tensors = weights.export(self.policy.module, self.entries, self.topology)
        if not self.is_first:
            for _ in tensors:
                pass
            return
        dtype = next(self.policy.module.parameters()).dtype
        described = {
            name: Description(shape, dtype)
            for entry in self.entries
            for name, shape in zip(entry.hf_names, entry.hf_shapes(), strict=True)
        }
        with hf_files.written_aside(directory) as aside:
            hf_files.copy_side_files(self.hf_path, aside)
            hf_files.write_config(aside, hf_files.with_dtype(hf_files.read_config(aside), {dtype}))
            hf_files.write_tensors(aside, described, tensors)

    def _decode(self, ids: Iterable[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
