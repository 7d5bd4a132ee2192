"""Checks everything about a run that can be checked before it starts, and lists all problems at once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tempo_megatron.config import (
    Config,
    CriticConfig,
    CriticTraining,
    LearningRateSchedule,
    LearnsFrom,
    LoggingConfig,
    PolicyConfig,
    TrackerMode,
)
from tempo_megatron.data import fingerprint
from tempo_megatron.data.questions import data_file_problems, read_questions, reserve_labeled_questions
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.sources import read_answered_rows
from tempo_megatron.data.vocabulary import load_tokenizer
from tempo_megatron.grading import labels
from tempo_megatron.grading.rollout_grader import grading_problems
from tempo_megatron.launch import torchrun
from tempo_megatron.megatron.accelerators import apex_is_another_project
from tempo_megatron.run_dir.layout import as_saved, recipe_differences
from tempo_megatron.validation.method import method_problems
from tempo_megatron.validation.model import model_problems, vocabulary_problems
from tempo_megatron.validation.pseudo_labels import pseudo_label_problems, warm_up_problems
from tempo_megatron.validation.rollout_correction import correction_problems


def recipe_problems(config: Config) -> list[str]:
    """Return a line for each problem; [] when the run can start."""
    return [
        *_missing_settings(config),
        *_tracker_problems(config.logging),
        *method_problems(config),
        *_optimizer_problems(config),
        *_number_problems(config),
        *correction_problems(config),
        *pseudo_label_problems(config),
        *model_problems(config),
        *_data_problems(config),
        *_label_problems(config),
        *recipe_differences(config),
        *fingerprint.fingerprint_problems(config),
    ]


def _label_problems(config: Config) -> list[str]:
    """Return a line for each bad label. Ranks under torchrun leave the check to the process that started them."""
    return (
        []
        if torchrun.is_checked()
        else labels.label_problems(read_answered_rows(config.data.sources()), config.grading)
    )


def _missing_settings(config: Config) -> Iterator[str]:
    """Yield a line for each setting, file or package that the recipe needs and that is missing."""
    for key, value in {"run_dir": config.run_dir, "model.hf_path": config.model.hf_path}.items():
        if not value:
            yield f"{key}: required"
    for key, reasons in _needed_streams(config).items():
        if reasons and not getattr(config.data, key):
            yield f"data.{key}: required, a list of sources: {', '.join(reasons)}"
    if config.stages.warm_start.steps and not config.data.warm_start:
        yield "data.warm_start: required when stages.warm_start.steps is set"
    replay = config.generation.replay
    if replay and not list(Path(replay).glob("*.safetensors")):
        yield f"generation.replay: no rollouts in {replay}; the run needs generation.keep_rollouts=true"
    if replay and Path(replay).resolve().parent == Path(config.run_dir).resolve():
        yield "run_dir: a replay needs a directory of its own"
    if apex_is_another_project():
        yield "apex: the package installed under this name is not NVIDIA's: uninstall it (docs/clusters.md builds Apex)"


def _tracker_problems(logging: LoggingConfig) -> Iterator[str]:
    """Yield a line for each package that a tracker of metrics needs and that is missing."""
    if logging.wandb is not TrackerMode.disabled and not find_spec("wandb"):
        yield "logging.wandb: the package wandb is not installed"
    if logging.mlflow is not TrackerMode.disabled and not all(map(find_spec, ("mlflow", "sqlalchemy", "alembic"))):
        yield "logging.mlflow: the packages of the extra mlflow are not installed"


def _needed_streams(config: Config) -> dict[str, list[str]]:
    """Return the reasons why a run needs labeled and unlabeled questions; no reason where it needs none."""
    learns_from, critic = config.policy.learns_from, config.critic.training
    labeled = {
        f"policy.learns_from is {learns_from}": learns_from is not LearnsFrom.unlabeled,
        "critic.training is calibrated": critic is CriticTraining.calibrated,
        "stages.critic_start has iterations": config.stages.critic_start.iterations > 0
        and critic is not CriticTraining.none,
        "calibration.questions are set aside": config.calibration.questions > 0,
    }
    unlabeled = {
        f"policy.learns_from is {learns_from}": learns_from is not LearnsFrom.labeled,
    }
    return {
        "labeled": [reason for reason, applies in labeled.items() if applies],
        "unlabeled": [reason for reason, applies in unlabeled.items() if applies],
    }


def _optimizer_problems(config: Config) -> Iterator[str]:
    """Yield a line for each learning rate schedule that contradicts itself."""
    groups = {
        "policy.optimizer": config.policy.optimizer,
        "critic.optimizer": config.critic.optimizer,
        "stages.warm_start.optimizer": config.stages.warm_start.optimizer,
    }
    for key, rate in groups.items():
        if rate.schedule is not LearningRateSchedule.constant and rate.decay_steps <= rate.warmup_steps:
            yield f"{key}.decay_steps: more than warmup_steps ({rate.warmup_steps}), got {rate.decay_steps}"
        if rate.warmup_share and rate.warmup_steps:
            yield f"{key}.warmup_share: {rate.warmup_share:g}, and warmup_steps {rate.warmup_steps}: set one of them"
        elif rate.warmup_share and not rate.decay_steps:
            yield f"{key}.warmup_share: a share of decay_steps, which is 0"


def _number_problems(config: Config) -> Iterator[str]:
    """Yield a line for each number that does not fit another setting."""
    fewest = min(config.evaluation.samples, config.evaluation.final_samples or config.evaluation.samples)
    if config.evaluation.k > fewest:
        yield f"evaluation.k: {config.evaluation.k} is more than the {fewest} samples a question"
    for key, step, (batch, prompts) in _batches(config):
        if step.mini_batches > prompts * config.loop.samples_per_prompt:
            yield f"{key}.mini_batches: {step.mini_batches} is more than the rollouts of {batch}"


def _batches(config: Config) -> Iterator[tuple[str, PolicyConfig | CriticConfig, tuple[str, int]]]:
    """Yield each use of mini-batches: the model, its settings, and the setting and number of prompts that are cut."""
    yield "policy", config.policy, _policy_prompts(config)
    if config.critic.training is CriticTraining.returns:
        yield "critic", config.critic, _policy_prompts(config)
    elif config.critic.training is CriticTraining.calibrated:
        yield "critic", config.critic, ("loop.labeled_prompts", config.loop.labeled_prompts)
    start = config.stages.critic_start
    if start.iterations and config.critic.training is not CriticTraining.none:
        yield "critic", config.critic, ("stages.critic_start.prompts", start.prompts)


def _policy_prompts(config: Config) -> tuple[str, int]:
    """Return the setting that says how many prompts a policy step learns from, and the number."""
    loop = config.loop
    return {
        LearnsFrom.labeled: ("loop.labeled_prompts", loop.labeled_prompts),
        LearnsFrom.unlabeled: ("loop.unlabeled_prompts", loop.unlabeled_prompts),
        LearnsFrom.both: (
            "loop.labeled_prompts and unlabeled_prompts",
            loop.labeled_prompts + loop.unlabeled_prompts,
        ),
    }[config.policy.learns_from]


def _data_problems(config: Config) -> Iterator[str]:
    """Yield a line for each problem of tokenizer, data files, questions and graders."""
    if "{question}" not in config.data.prompt_template:
        yield "data.prompt_template: needs {question}"
        return
    directory = Path(as_saved(config).model.hf_path)
    try:
        tokenizer = load_tokenizer(directory)
    except ValueError as error:
        if directory.is_dir():  # otherwise `model_problems` names it, and transformers would mention its hub
            yield f"model.hf_path: {error}"
        yield from data_file_problems(config.data)
        return
    if config.data.chat_template and not tokenizer.chat_template:
        yield "data.chat_template: the tokenizer has none"
        return
    try:
        learned = fingerprint.learned_questions(config.run_dir)
        questions = read_questions(config.data, tokenizer, learned)
    except DataError as error:
        yield from str(error).splitlines()
        return
    yield from vocabulary_problems(config, tokenizer, questions)
    labeled, measured_count = len(questions.sets["labeled"].prompts), config.calibration.questions
    if measured_count and measured_count >= labeled:
        yield f"calibration.questions: {measured_count} of {labeled} labeled questions leave none to learn from"
    measured = reserve_labeled_questions(questions.sets["labeled"], measured_count, learned)
    if measured_count and not measured:
        yield "calibration.questions: the run has learned from all labeled questions that are left; add new ones"
    yield from warm_up_problems(config, labeled - measured_count, len(questions.sets["unlabeled"].prompts))
    warm_start = questions.sets["warm_start"].without(measured)
    if config.stages.warm_start.steps and not warm_start.prompts:
        yield "data.warm_start: all its questions are set aside by calibration.questions"
    yield from grading_problems(config.grading, questions.grader_locations())
