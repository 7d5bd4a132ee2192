"""Every setting of a run: typed, documented, and the same on a laptop and on a cluster.

A recipe is a YAML file of these dataclasses. `load` merges it with `key=value` overrides; an unknown key or a value
of the wrong type is a `ConfigError` that names the key and, for unknown ones, the nearest that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """One or more settings are wrong; the message lists every problem found, one a line."""


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class Overlong(StrEnum):
    drop = "drop"
    error = "error"


class Truncated(StrEnum):
    value = "value"
    wrong = "wrong"
    mask = "mask"


class Baseline(StrEnum):
    before_token = "before_token"
    after_token = "after_token"


class Labels(StrEnum):
    graded = "graded"
    shuffled = "shuffled"
    none = "none"


class TargetRange(StrEnum):
    zero_one = "zero_one"
    minus_one_one = "minus_one_one"

    @property
    def wrong(self) -> float:
        """The target of a wrong answer; that of a right one is 1."""
        return 0.0 if self is TargetRange.zero_one else -1.0


class WandbMode(StrEnum):
    disabled = "disabled"
    offline = "offline"
    online = "online"


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its meaning (and unit) attached; mutable defaults are copied for every instance."""
    if isinstance(default, (list, dict)) or is_dataclass(default):
        kind = type(default)
        return field(default_factory=kind, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelConfig:
    hf_path: str = setting("", "directory of the Hugging Face model that policy and critic start from (required)")
    precision: Precision = setting(Precision.bf16, "parameters and activations; fp32 is the only choice on CPUs")


@dataclass
class ParallelConfig:
    processes_per_node: int = setting(1, "ranks that `tempo train` starts on this machine: one a GPU, or a CPU core")
    tensor_model_parallel_size: int = setting(1, "TP: ranks that share every layer")
    pipeline_model_parallel_size: int = setting(1, "PP: stages that the layers are cut into")
    sequence_parallel: bool = setting(False, "split activations between TP regions over the sequence; needs TP > 1")


@dataclass
class SourceConfig:
    """Where prompts come from: a JSONL file (`path`) or a reasoning-gym task (`task`), never both."""

    path: str = setting("", "JSONL file; a row has `prompt`, `answer` where labelled, optional `id` and `grader`")
    task: str = setting("", "name of a reasoning-gym task")
    seed: int = setting(0, "seed of the reasoning-gym task; its question i is drawn from seed + i")
    size: int = setting(0, "questions to draw from the reasoning-gym task; questions that repeat are kept once")
    options: dict[str, Any] = setting({}, "further settings of the reasoning-gym task")
    grader: str = setting("", "grader of rows that name none: `exact`, `math`; a task's own scorer when empty")


@dataclass
class DataConfig:
    labelled: list[SourceConfig] = setting([], "D_L: questions with answers, which calibrate the critic (required)")
    unlabelled: list[SourceConfig] = setting([], "D_U: questions to adapt to; their answers reach evaluation only")
    held_out: list[SourceConfig] = setting([], "questions that are only ever evaluated")
    warm_start: list[SourceConfig] = setting([], "questions with answers for the supervised warm start")
    prompt_template: str = setting("{question}", "text given to the model; `{question}` stands for the question")
    chat_template: bool = setting(False, "put the prompt into the tokenizer's chat template as the user's turn")
    max_prompt_tokens: int = setting(1024, "tokens; a longer prompt is handled as `overlong` says")
    overlong: Overlong = setting(Overlong.drop, "prompts over the limit: drop (counted) or error")


@dataclass
class GenerationConfig:
    tensor_parallel_size: int = setting(0, "ranks of one vLLM replica; 0 takes the trainer's TP")
    max_response_tokens: int = setting(16384, "tokens; a response that reaches it is truncated")
    temperature: float = setting(1.0, "sampling temperature of training rollouts")
    top_p: float = setting(1.0, "nucleus sampling mass of training rollouts")
    max_sequences: int = setting(256, "sequences that one replica decodes together")
    memory_fraction: float = setting(0.5, "share of a GPU's memory that vLLM may take; on CPUs see kv_cache_gib")
    kv_cache_gib: float = setting(1.0, "GiB of KV cache a rank on CPUs; unused on GPUs")
    enforce_eager: bool = setting(False, "skip CUDA graphs and compilation: starts sooner, generates slower")
    check_weights: bool = setting(False, "after each sync, compare every tensor's checksum with the trainer's")


@dataclass
class OptimizerConfig:
    learning_rate: float = setting(1e-6, "Adam's step size, constant")
    weight_decay: float = setting(0.0, "decoupled weight decay")
    beta1: float = setting(0.9, "Adam's decay of the first moment")
    beta2: float = setting(0.999, "Adam's decay of the second moment")
    epsilon: float = setting(1e-8, "Adam's denominator offset")
    gradient_clip: float = setting(1.0, "largest global gradient norm; larger ones are scaled down to it")


@dataclass
class CriticConfig:
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the critic's optimizer")
    labels: Labels = setting(
        Labels.graded, "target of calibration; `shuffled` and `none` (never calibrated) are controls of an experiment"
    )
    checkpoint: str = setting(
        "", "directory of a checkpoint whose critic this one starts from; empty: model.hf_path and a fresh value head"
    )
    target_range: TargetRange = setting(TargetRange.zero_one, "targets of a wrong and a right answer: 0, 1 or -1, 1")
    mini_batches: int = setting(4, "optimizer steps that one epoch over the labelled rollouts is cut into")
    epochs: int = setting(1, "passes over an iteration's labelled rollouts")
    micro_batch_size: int = setting(1, "sequences of one forward pass on one rank")


@dataclass
class PolicyConfig:
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the policy's optimizer")
    checkpoint: str = setting("", "directory of a checkpoint whose policy this one starts from; empty: model.hf_path")
    mini_batches: int = setting(4, "optimizer steps that one epoch over the unlabelled rollouts is cut into")
    epochs: int = setting(1, "passes over an iteration's unlabelled rollouts")
    micro_batch_size: int = setting(1, "sequences of one forward pass on one rank")
    clip_low: float = setting(3e-4, "GSPO: the sequence ratio is clipped below at 1 - clip_low")
    clip_high: float = setting(5e-4, "GSPO: the sequence ratio is clipped above at 1 + clip_high")
    baseline: Baseline = setting(
        Baseline.before_token, "value that token t's advantage subtracts: V(x, y_<t), unbiased, or V(x, y_<=t), literal"
    )
    whiten: bool = setting(False, "shift and scale the batch's advantages to mean 0 and variance 1 over tokens")
    truncated: Truncated = setting(
        Truncated.value, "reward of an unlabelled response cut at the limit: its value, a wrong answer's, or left out"
    )


@dataclass
class LoopConfig:
    iterations: int = setting(100, "TEMPO iterations: one rollout, one E-step, one M-step each")
    labelled_prompts: int = setting(128, "labelled prompts an iteration")
    unlabelled_prompts: int = setting(128, "unlabelled prompts an iteration")
    samples_per_prompt: int = setting(8, "responses a prompt")


@dataclass
class WarmStartConfig:
    steps: int = setting(0, "supervised steps on data.warm_start before anything else; 0 leaves the policy as it is")
    batch_size: int = setting(64, "examples a step")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "the optimizer of the warm start, dropped after it")


@dataclass
class CriticStartConfig:
    iterations: int = setting(0, "E-steps on labelled prompts alone before the first M-step")
    prompts: int = setting(128, "labelled prompts of each")


@dataclass
class StagesConfig:
    warm_start: WarmStartConfig = setting(WarmStartConfig(), "supervised warm start of the policy")
    critic_start: CriticStartConfig = setting(CriticStartConfig(), "labelled-only calibration of the critic")


@dataclass
class EvaluationConfig:
    every: int = setting(10, "iterations between evaluations; both ends are always evaluated. 0: only the ends")
    samples: int = setting(16, "responses a question")
    k: int = setting(8, "k of avg@k and pass@k, at most `samples`")
    final_samples: int = setting(0, "responses a question at both ends; 0 takes `samples`")
    max_questions: int = setting(0, "questions of each set between the ends, the first ones; 0 takes all")
    temperature: float = setting(1.0, "sampling temperature")
    top_p: float = setting(1.0, "nucleus sampling mass")


@dataclass
class CheckpointConfig:
    every: int = setting(10, "iterations between checkpoints; the last iteration is always saved")
    keep: int = setting(2, "newest checkpoints kept")


@dataclass
class LoggingConfig:
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl")
    wandb: WandbMode = setting(WandbMode.disabled, "write to Weights & Biases too (needs its package): offline, online")
    wandb_project: str = setting("tempo-megatron", "project of the W&B run")


@dataclass
class Config:
    run_dir: str = setting("", "directory of everything that the run writes (required); the same command resumes it")
    seed: int = setting(0, "seed that every random choice of the run is hashed from")
    export: bool = setting(True, "write the final policy as a Hugging Face directory, run_dir/hf")
    model: ModelConfig = setting(ModelConfig(), "the model")
    parallel: ParallelConfig = setting(ParallelConfig(), "how it is spread over ranks")
    data: DataConfig = setting(DataConfig(), "questions")
    generation: GenerationConfig = setting(GenerationConfig(), "the generator and its sampling")
    policy: PolicyConfig = setting(PolicyConfig(), "the M-step")
    critic: CriticConfig = setting(CriticConfig(), "the E-step")
    stages: StagesConfig = setting(StagesConfig(), "what comes before the first iteration")
    loop: LoopConfig = setting(LoopConfig(), "the iterations")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "evaluation during the run")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "checkpoints")
    logging: LoggingConfig = setting(LoggingConfig(), "where metrics go")


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The recipe with its overrides as a `Config`. Raises ConfigError listing all bad keys and values."""
    path = Path(recipe)
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe file")
    try:
        given = OmegaConf.load(path)
        dotted = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # OmegaConf lets the YAML parser's own exceptions through
        raise ConfigError(f"{path}: not a readable recipe: {error}") from error
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{path}: a recipe is a mapping of settings")
    malformed = [f"{item!r}: an override is written key=value" for item in overrides if "=" not in item]
    problems = malformed + [problem for part in (given, dotted) for problem in _problems(part)]
    if problems:
        raise ConfigError("\n".join(problems))
    merged = OmegaConf.merge(OmegaConf.structured(Config), given, dotted)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; `load` reads it back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def documented_keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting as (dotted key, default, help), depth first, in the order they are written here."""
    for item, default in zip(fields(cls), vars(cls()).values(), strict=True):
        if is_dataclass(default) and not isinstance(default, type):
            yield from documented_keys(type(default), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", default, item.metadata["help"]


def _problems(part: DictConfig) -> list[str]:
    """Unknown keys, and values that their setting's type refuses."""
    found: list[str] = []

    def visit(node: Any, cls: type, prefix: str) -> None:
        hints = get_type_hints(cls)
        if not isinstance(node, dict):
            found.append(f"{prefix.rstrip('.')}: expected a group of settings, got {node!r}")
            return
        for key, value in node.items():
            name = f"{prefix}{key}"
            if key not in hints:
                every = [dotted for dotted, _, _ in documented_keys()]
                near = difflib.get_close_matches(str(key), hints, n=1) or difflib.get_close_matches(name, every, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
                found.append(f"{name}: unknown setting{hint}")
            elif is_dataclass(hints[key]):
                visit(value, hints[key], f"{name}.")
            elif get_args(hints[key]) == (SourceConfig,):
                if not isinstance(value, list):
                    found.append(f"{name}: expected a list of sources, got {value!r}")
                    continue
                for index, source in enumerate(value):
                    visit(source, SourceConfig, f"{name}[{index}].")
            else:
                check_type(name, cls, str(key), value)

    def check_type(name: str, cls: type, key: str, value: Any) -> None:
        try:
            OmegaConf.update(OmegaConf.structured(cls), key, value)
        except OmegaConfBaseException as error:
            found.append(f"{name}: {str(error).splitlines()[0]}")

    visit(OmegaConf.to_container(part, resolve=True), Config, "")
    return found
