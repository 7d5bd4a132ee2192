"""Everything about a run that can be checked before it starts, all problems at once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tempo_megatron.algorithms.methods import method
from tempo_megatron.config import (
    Config,
    CriticConfig,
    CriticTraining,
    GateOn,
    LearningRateSchedule,
    LearnsFrom,
    Order,
    PolicyConfig,
    TargetRange,
    WandbMode,
    missing_files,
)
from tempo_megatron.data.questions import read_questions, set_aside
from tempo_megatron.data.sources import DataError
from tempo_megatron.data.vocabulary import load_tokenizer
from tempo_megatron.grading.grader import problems as grading_problems
from tempo_megatron.megatron.accelerators import apex_is_another_project
from tempo_megatron.megatron.log_probs import STATISTICS
from tempo_megatron.run_directory import differences
from tempo_megatron.validate_model import problems as model_problems
from tempo_megatron.validate_model import vocabulary_problems


def problems(config: Config) -> list[str]:
    """What is wrong, one line each; empty when the run can start."""
    return [
        *_required(config),
        *_method(config),
        *_optimizers(config),
        *_numbers(config),
        *model_problems(config),
        *_data(config),
        *differences(config),
    ]


def _required(config: Config) -> Iterator[str]:
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
    if config.logging.wandb is not WandbMode.disabled and not find_spec("wandb"):
        yield "logging.wandb: the package wandb is not installed"
    if apex_is_another_project():
        yield "apex: the package installed under this name is not NVIDIA's: uninstall it (docs/clusters.md builds Apex)"


def _needed_streams(config: Config) -> dict[str, list[str]]:
    """Why a run needs questions of each kind; an empty list where it does not."""
    learns_from, critic = config.policy.learns_from, config.critic.training
    labelled = {
        f"policy.learns_from is {learns_from}": learns_from is not LearnsFrom.unlabelled,
        "critic.training is calibrated": critic is CriticTraining.calibrated,
        "stages.critic_start has iterations": config.stages.critic_start.iterations > 0
        and critic is not CriticTraining.none,
        "calibration.questions are set aside": config.calibration.questions > 0,
    }
    unlabelled = {
        f"policy.learns_from is {learns_from}": learns_from is not LearnsFrom.labelled,
        "checkpoint.choose scores responses": config.checkpoint.choose,
    }
    return {
        "labelled": [why for why, is_so in labelled.items() if is_so],
        "unlabelled": [why for why, is_so in unlabelled.items() if is_so],
    }


def _method(config: Config) -> Iterator[str]:
    """Settings that the method and the schedule cannot work with."""
    needs, critic = method(config.method).needs, config.critic.training
    unknown = needs - {"values", "votes", *STATISTICS}
    if unknown:
        yield f"method: {config.method} needs {', '.join(sorted(unknown))}; there are values, votes, {STATISTICS}"
    if "values" in needs and critic is CriticTraining.none:
        yield f"critic.training: method {config.method} needs a critic"
    if "values" not in needs and critic is CriticTraining.returns:
        yield f"critic.training: method {config.method} reads no values, so there are no returns to learn"
    if "votes" in needs and config.policy.learns_from is not LearnsFrom.unlabelled:
        yield f"policy.learns_from: method {config.method} votes on unlabelled questions"
    loop = config.loop
    if method(config.method).compares_responses and loop.samples_per_prompt < 2:
        yield f"loop.samples_per_prompt: at least 2, method {config.method} compares a prompt's responses"
    if loop.order is Order.values_first and "values" not in needs:
        yield f"loop.order: method {config.method} reads no values"
    if loop.gate and (not config.calibration.questions or critic is not CriticTraining.calibrated):
        yield "loop.gate: needs calibration.questions, and critic.training calibrated"
    if loop.gate and loop.gate_on is GateOn.auroc_within_prompts and config.calibration.samples < 2:
        yield "calibration.samples: at least 2, loop.gate_on compares a prompt's responses"
    if loop.drop_uniform_prompts and loop.samples_per_prompt < 2:
        yield "loop.drop_uniform_prompts: a single response is always uniform; needs loop.samples_per_prompt above 1"
    if loop.votes_per_prompt and "votes" not in needs:
        yield f"loop.votes_per_prompt: method {config.method} counts no votes"
    taught = config.critic.checkpoint or config.stages.critic_start.iterations
    if critic is CriticTraining.frozen and not taught:
        yield "critic.training: a frozen critic needs critic.checkpoint or stages.critic_start to have learnt"
    if critic is CriticTraining.none and config.critic.target_range is not TargetRange.zero_one:
        yield f"critic.target_range: method {config.method} has no critic; its rewards are 0 and 1"
    if 0 < loop.votes_per_prompt < loop.samples_per_prompt:
        yield f"loop.votes_per_prompt: at least loop.samples_per_prompt ({loop.samples_per_prompt}), or 0"
    if config.checkpoint.choose and not config.calibration.questions:
        yield "checkpoint.choose: needs calibration.questions, labelled questions set aside"
    if config.checkpoint.patience and not config.checkpoint.choose:
        yield "checkpoint.patience: needs checkpoint.choose"
    if config.checkpoint.patience >= config.checkpoint.keep > 0 and config.checkpoint.choose:
        yield (
            f"checkpoint.keep: {config.checkpoint.keep} newest checkpoints are too few to wait for "
            f"{config.checkpoint.patience} candidates after the best; keep more than checkpoint.patience"
        )
    if config.policy.dual_clip and config.policy.dual_clip <= 1:
        yield f"policy.dual_clip: above 1, or 0 for none, got {config.policy.dual_clip}"


def _optimizers(config: Config) -> Iterator[str]:
    groups = {
        "policy.optimizer": config.policy.optimizer,
        "critic.optimizer": config.critic.optimizer,
        "stages.warm_start.optimizer": config.stages.warm_start.optimizer,
    }
    for key, made in groups.items():
        if made.schedule is not LearningRateSchedule.constant and made.decay_steps <= made.warmup_steps:
            yield f"{key}.decay_steps: more than warmup_steps ({made.warmup_steps}), got {made.decay_steps}"


def _numbers(config: Config) -> Iterator[str]:
    fewest = min(config.evaluation.samples, config.evaluation.final_samples or config.evaluation.samples)
    if config.evaluation.k > fewest:
        yield f"evaluation.k: {config.evaluation.k} is more than the {fewest} samples a question"
    if config.policy.importance_cap and config.generation.top_p < 1:
        yield (
            f"policy.importance_cap: needs generation.top_p 1, got {config.generation.top_p}: the generator's "
            "log-probs are those of the nucleus, the trainer's of the whole vocabulary"
        )
    for key, step, (batch, prompts) in _batches(config):
        if step.mini_batches > prompts * config.loop.samples_per_prompt:
            yield f"{key}.mini_batches: {step.mini_batches} is more than the rollouts of {batch}"


def _batches(config: Config) -> Iterator[tuple[str, PolicyConfig | CriticConfig, tuple[str, int]]]:
    """What is cut into mini-batches: the model, its settings, and the prompts that it takes."""
    yield "policy", config.policy, _policy_prompts(config)
    if config.critic.training is CriticTraining.returns:
        yield "critic", config.critic, _policy_prompts(config)
    elif config.critic.training is CriticTraining.calibrated:
        yield "critic", config.critic, ("loop.labelled_prompts", config.loop.labelled_prompts)
    start = config.stages.critic_start
    if start.iterations and config.critic.training is not CriticTraining.none:
        yield "critic", config.critic, ("stages.critic_start.prompts", start.prompts)


def _policy_prompts(config: Config) -> tuple[str, int]:
    """The setting that says how many prompts a policy step learns from, and the number."""
    loop = config.loop
    return {
        LearnsFrom.labelled: ("loop.labelled_prompts", loop.labelled_prompts),
        LearnsFrom.unlabelled: ("loop.unlabelled_prompts", loop.unlabelled_prompts),
        LearnsFrom.both: (
            "loop.labelled_prompts and unlabelled_prompts",
            loop.labelled_prompts + loop.unlabelled_prompts,
        ),
    }[config.policy.learns_from]


def _data(config: Config) -> Iterator[str]:
    if "{question}" not in config.data.prompt_template:
        yield "data.prompt_template: needs {question}"
        return
    directory = Path(config.model.hf_path)
    try:
        tokenizer = load_tokenizer(directory)
    except ValueError as error:
        if directory.is_dir():  # otherwise it is said already, and transformers would speak of its hub
            yield f"model.hf_path: {error}"
        yield from missing_files(config.data.sources())
        return
    if config.data.chat_template and not tokenizer.chat_template:
        yield "data.chat_template: the tokenizer has none"
        return
    try:
        questions = read_questions(config.data, tokenizer)
    except DataError as error:
        yield from str(error).splitlines()
        return
    yield from vocabulary_problems(config, tokenizer, questions)
    labelled, aside = len(questions.sets["labelled"].prompts), config.calibration.questions
    if aside and aside >= labelled:
        yield f"calibration.questions: {aside} of {labelled} labelled questions leave none to learn from"
    taught = questions.sets["warm_start"].without(set_aside(questions.sets["labelled"], aside))
    if config.stages.warm_start.steps and not taught.prompts:
        yield "data.warm_start: all its questions are set aside by calibration.questions"
    yield from grading_problems(config.grading, questions.graders())
