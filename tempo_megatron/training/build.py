"""The composition root: builds a run from its config, and resumes it.

Models, generator, grader, data and logs come from factories. Tests and benchmarks pass others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tempo_megatron.config import (
    Config,
    CriticTraining,
    GradingConfig,
    LearnsFrom,
    LoggingConfig,
    Precision,
    ReplayedRoutes,
)
from tempo_megatron.data import fingerprint
from tempo_megatron.data.templates import end_token_ids
from tempo_megatron.data.vocabulary import load_tokenizer
from tempo_megatron.generation.engine import Generator, WeightSource
from tempo_megatron.generation.recorded import Engine, RecordedGenerator
from tempo_megatron.grading import RolloutGrader
from tempo_megatron.megatron import topology
from tempo_megatron.megatron.checkpointing import saver
from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.metrics.writers import MetricsLog
from tempo_megatron.planning.prediction import predict
from tempo_megatron.run_dir.layout import create_run_directory, saved_checkpoint, write_environment, write_plan
from tempo_megatron.run_dir.lock import RunDirectoryInUse, RunLock
from tempo_megatron.supervision.interruption import InterruptionRequest
from tempo_megatron.supervision.watchdog import Watchdog
from tempo_megatron.training.banner import banner, run_facts
from tempo_megatron.training.lifecycle import Lifecycle
from tempo_megatron.training.models import Models
from tempo_megatron.training.phases.collect import Collector
from tempo_megatron.training.phases.evaluate import Evaluator
from tempo_megatron.training.phases.length_history import LengthHistory
from tempo_megatron.training.phases.select_checkpoint import CheckpointSelector
from tempo_megatron.training.phases.token_samples import Decode
from tempo_megatron.training.recording import Recorder
from tempo_megatron.training.reporting import Console, RunLog
from tempo_megatron.training.residency import DeviceResidency
from tempo_megatron.training.run import Run
from tempo_megatron.training.run_data import RunData, load_run_data
from tempo_megatron.training.state import RunState
from tempo_megatron.utils.distributed import broadcast_from_first
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.host_memory import total_and_free

MakeModels = Callable[[Config, Topology, DeviceResidency, Path | None], Models]
"""Takes (config, topology, residency, checkpoint of the run if it has one) and returns models."""
MakeGenerator = Callable[[Config, Path, Any, WeightSource], Engine]
"""Takes (config, directory with config.json and tokenizer, tokenizer, the policy's weights); returns a generator."""
MakeGrader = Callable[[Decode, GradingConfig], RolloutGrader]
MakeData = Callable[[Config, Any], RunData]
"""Takes (config, tokenizer) and returns data."""
MakeLog = Callable[[Path, LoggingConfig, int], MetricsLog]
"""Takes (run directory, config, number of lines to keep) and returns a log."""


def make_vllm_generator(config: Config, hf_path: Path, tokenizer: Any, policy_tensors: WeightSource) -> Engine:
    """Return vLLM replicas over the trainer's ranks."""
    tensor_size = config.generation.tensor_parallel_size or config.parallel.tensor_model_parallel_size
    return Generator(
        hf_path,
        config.generation,
        tensor_parallel_size=tensor_size,
        max_model_len=config.data.max_prompt_tokens + config.generation.max_response_tokens,
        dtype=torch.bfloat16 if config.model.precision is Precision.bf16 else torch.float32,
        eos_token_ids=end_token_ids(config.data, tokenizer),
        seed=config.seed,
        weights=policy_tensors,
        numerics=config.numerics,
        returns_routes=config.policy.router_replay is ReplayedRoutes.generator,
    )


def build_run(
    config: Config,
    *,
    make_models: MakeModels = Models,
    make_generator: MakeGenerator = make_vllm_generator,
    make_grader: MakeGrader = RolloutGrader,
    make_data: MakeData = load_run_data,
    make_log: MakeLog = MetricsLog,
    watched: bool = False,
) -> Run:
    """Build a run and resume it from its newest intact checkpoint, if it has one. Collective.

    With `watched`, a rank that hangs ends the job, until `Run.watchdog` is stopped. Raises RunDirectoryInUse where
    another run works in the directory.
    """
    start_time, directory = time.monotonic(), Path(config.run_dir)
    limit = max(config.faults.limit_seconds(phase) for phase in ("generate", "m_step"))
    ranks = topology.initialize(config.parallel, config.seed, limit, config.preflight.presence_seconds)
    residency = DeviceResidency(ranks.device)
    watchdog = Watchdog.of_this_job(residency.progress, config.faults, directory / "flight")
    if watched:
        watchdog.start()
    with residency.phase("start"), expect_pace(Pace.untimed):
        console = Console(ranks.rank == 0)
        lock = RunLock(directory) if console.is_first else None
        if console.is_first:  # it asks Git, once for all ranks
            console.say(banner(config, ranks))
        # Another node may see the directory a little later, so one rank looks for all.
        checkpoint = broadcast_from_first(saved_checkpoint(directory) if console.is_first else None)
        tokenizer = load_tokenizer(_hf_path(config, checkpoint))
        data = make_data(config, tokenizer)
        for line in data.lines():
            console.say(line)
        decode = _decoder(tokenizer)
        grader = make_grader(decode, config.grading)
        models = make_models(config, ranks, residency, checkpoint)
        data_contents = _enter_directory(config, ranks, data, lock, console)
        lifecycle = Lifecycle(_saver(config, ranks), models, InterruptionRequest.of_this_job(), residency.phase)
        state = lifecycle.resume(console)
        selector = _selector(config, data)
        _restore(state, data, grader, models, selector)
        if state.data_contents not in (None, data_contents):
            selector.forget()
            forget_changed_questions(state, data, console)
        state.data_contents = data_contents
        writers = make_log(directory, config.logging, state.log_lines) if console.is_first else None
        hf_path = _hf_path(config, lifecycle.resumed_from)
        generator = _recorded_generator(
            config, lambda: make_generator(config, hf_path, tokenizer, models.policy_tensors), state
        )
        residency.generator = generator
        run = Run(
            config=config,
            topology=ranks,
            console=console,
            residency=residency,
            watchdog=watchdog,
            lock=lock,
            data=data,
            grader=grader,
            evaluator=_evaluator(config, data, grader, decode, keeps_samples=console.is_first),
            selector=selector,
            models=models,
            lifecycle=lifecycle,
            state=state,
            metrics_log=RunLog(config, console, state, residency, generator, writers),
            recorder=Recorder(
                config,
                models,
                grader.twin(),
                _decoder(tokenizer, skips_special_tokens=False),
                residency.phase,
                directory if console.is_first else None,
            ),
            generator=generator,
            collector=_collector(config, generator, grader, data, residency, state),
            start_time=start_time,
            pass_rates=state.pass_rates.copy(),
        )
        if run.is_finished:
            console.say(
                f"{directory} is finished, at iteration {run.iteration}: nothing is trained; export, summary and "
                "report are written again. To train on, raise loop.iterations; for a new run, name another run_dir"
            )
        if not lifecycle.in_stages:
            run.sync()
    return run


def _hf_path(config: Config, checkpoint: Path | None) -> Path:
    """Return the directory with the model's config.json and tokenizer: the run's checkpoint has both."""
    return checkpoint / HUGGING_FACE if checkpoint else Path(config.model.hf_path)


def _decoder(tokenizer: Any, *, skips_special_tokens: bool = True) -> Decode:
    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=skips_special_tokens)
        return text

    return decode


def _enter_directory(config: Config, ranks: Topology, data: RunData, lock: RunLock | None, console: Console) -> str:
    """Lock the run directory, record config, environment and data in it, and return the hash of the data's contents.

    Collective. Nothing in the directory changes before it is locked. Raises RunDirectoryInUse where another run works
    in it.
    """
    refusal = contents = ""
    if lock:
        try:
            lock.acquire()
            create_run_directory(config)
            write_environment(Path(config.run_dir), run_facts(config, ranks))
            record_plan(config, ranks, data, console)
            accepted, contents = fingerprint.update_record(config, data.learned)
            for line in accepted:
                console.say(line)
        except RunDirectoryInUse as error:
            refusal = str(error)
    refusal, contents = broadcast_from_first((refusal, contents))
    if refusal:
        raise RunDirectoryInUse(refusal)
    return contents


def record_plan(config: Config, ranks: Topology, data: RunData, console: Console) -> None:
    """Write what the plan predicts for this start of the run, or remove the prediction of an earlier start.

    A failure is a warning: the run can do without.
    """
    directory = Path(config.run_dir)
    try:
        write_plan(directory, None)
        write_plan(directory, _prediction(config, ranks, data))
    except Exception as error:
        console.warn(f"the report will have no plan beside its times: {error!r}")


def _prediction(config: Config, ranks: Topology, data: RunData) -> dict[str, Any] | None:
    """Return what the plan predicts for this run; None on CPUs, which plans know nothing about."""
    if ranks.device.type != "cuda":
        return None
    gpu_bytes, (host_bytes, _) = torch.cuda.get_device_properties(ranks.device).total_memory, total_and_free()
    memory = {"gpu_gib": gpu_bytes / 2**30, "host_gib": host_bytes / 2**30}
    questions = sum(map(len, data.questions.with_answers().values()))
    return predict(config, gpus=ranks.world_size, **memory, questions=questions)


def _saver(config: Config, ranks: Topology) -> saver.Saver:
    checkpoints, model = Path(config.run_dir) / "checkpoints", Path(config.model.hf_path)
    return saver.Saver(checkpoints, config.checkpoint, model, config.critic.target_range, ranks.collective_limit)


def _selector(config: Config, data: RunData) -> CheckpointSelector:
    """Return the selector of checkpoints. Where the policy does not learn from unlabeled questions, the critic's values
    of responses to them take no part."""
    learns_unlabeled = config.policy.learns_from is not LearnsFrom.labeled
    valued = learns_unlabeled and config.critic.training is not CriticTraining.none
    unlabeled = data.questions.sets["unlabeled"].prompts if valued else []
    return CheckpointSelector(Path(config.run_dir) / "candidates", unlabeled, config.checkpoint)


def _evaluator(
    config: Config, data: RunData, grader: RolloutGrader, decode: Decode, *, keeps_samples: bool
) -> Evaluator:
    """Return the evaluator, whose grader counts its own errors: the run's counts are those of training."""
    return Evaluator(
        data.questions.with_answers(),
        data.questions.answers,
        grader.twin(),
        decode,
        config.evaluation,
        config.generation.max_response_tokens,
        Path(config.run_dir) / "samples" if keeps_samples else None,
        config.logging.token_samples,
    )


def _recorded_generator(config: Config, make_engine: Callable[[], Engine], state: RunState) -> RecordedGenerator:
    """Return the generator, which keeps its rollouts on disk. A replay reads another run's and has no engine."""
    replay = config.generation.replay
    if replay:
        generator = RecordedGenerator(None, Path(replay))
    else:
        generator = RecordedGenerator(make_engine(), Path(config.run_dir) / "rollouts")
    generator.figures, generator.iteration = state.generation_figures, state.iteration
    return generator


def _collector(
    config: Config,
    generator: RecordedGenerator,
    grader: RolloutGrader,
    data: RunData,
    residency: DeviceResidency,
    state: RunState,
) -> Collector:
    """Return the collector, which goes on with the rollouts that the state carries over and takes them out of it."""
    streams, history = (data.labeled, data.unlabeled, data.set_aside), LengthHistory(state.expected_tokens)
    carried, state.carried = list(state.carried), ()
    return Collector(config, generator, grader, *streams, residency.phase, history, carried)


def _restore(
    state: RunState,
    data: RunData,
    grader: RolloutGrader,
    models: Models,
    selector: CheckpointSelector,
) -> None:
    """Give each part of the run what a checkpoint's state holds of it. `Run.snapshot` is the inverse."""
    data.labeled.position = state.labeled_position
    data.unlabeled.position = state.unlabeled_position
    data.examples.position = state.examples_position
    grader.errors, grader.timeouts = state.grading_errors, state.grading_timeouts
    for name, steps in state.optimizer_steps.items():
        if name in models.trainers:  # a critic that has been frozen since has no optimizer
            models.trainers[name].steps = steps
    selector.restore(state.selection)


def forget_changed_questions(state: RunState, data: RunData, console: Console) -> None:
    """Drop the carried rollouts of questions that the changed data files no longer have in this form."""
    current = set(data.questions.sets["unlabeled"].prompts)
    carried = tuple(group for group in state.carried if group.rollouts[0].prompt in current)
    if dropped := len(state.carried) - len(carried):
        console.say(f"dropped the paused responses to {dropped} questions that have changed")
    state.carried = carried
