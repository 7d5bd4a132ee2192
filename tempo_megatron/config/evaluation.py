"""Settings of evaluation, checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class TrackerMode(StrEnum):
    """Where a tracker of metrics writes to."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


@dataclass
class EvaluationConfig:
    every: int = setting(
        10, "iterations between evaluations; start and end are always evaluated; 0: start and end alone", at_least=0
    )
    samples: int = setting(16, "responses to a question", at_least=1)
    k: int = setting(8, "k of avg@k, pass@k and cons@k, at most `samples`", at_least=1)
    final_samples: int = setting(0, "responses to a question at start and end; 0: `samples`", at_least=0)
    questions: int = setting(
        0,
        "questions of each set between start and end, from every source in proportion to its size; 0: all",
        at_least=0,
    )
    temperature: float = setting(1.0, "sampling temperature", at_least=0)
    top_p: float = setting(1.0, "nucleus sampling mass", above=0, at_most=1)


@dataclass
class CalibrationConfig:
    """Labeled questions that are never trained on. They measure the critic, open the gate and select a checkpoint."""

    questions: int = setting(
        0, "labeled questions that are set aside, the first ones of a hashed order; 0: no calibration", at_least=0
    )
    samples: int = setting(4, "responses to a question at each measurement", at_least=1)
    every: int = setting(1, "iterations between measurements", at_least=1)


@dataclass
class CheckpointConfig:
    every: int = setting(
        10, "iterations between checkpoints, also of the critic start; the last iteration is always saved", at_least=1
    )
    keep: int = setting(
        2, "number of newest checkpoints that are kept, beside the best and one to resume an interruption", at_least=1
    )
    keep_every: int = setting(
        0, "checkpoints of iterations that are multiples of this number are kept as well; 0: none", at_least=0
    )
    asynchronous: bool = setting(
        False,
        "write checkpoints in the background, from copies in host memory: weights on every rank, fp32 weights and "
        "Adam's moments on the first data-parallel rank",
    )
    select_best: bool = setting(
        False, "link checkpoints/best to the best kept checkpoint, by the rule in docs/algorithms.md"
    )
    selection_prompts: int = setting(
        64,
        "unlabeled prompts whose responses the critic scores for each candidate; a policy that learns from labeled "
        "prompts alone needs none",
        at_least=1,
    )
    selection_samples: int = setting(4, "responses of a candidate to each labeled and unlabeled question", at_least=1)
    patience: int = setting(0, "stop the run once so many candidates have followed the best one; 0: never", at_least=0)


TOKEN_SAMPLE_RESPONSES = 2
"""The number of responses to a question that are recorded token by token."""
TOKEN_SAMPLE_TOKENS = 2048
"""The number of tokens of a response that are recorded at most: half of them its first, the others its last."""


@dataclass
class LoggingConfig:
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl")
    wandb: TrackerMode = setting(
        TrackerMode.disabled, "log to Weights & Biases too, which needs the extra `wandb`: disabled, offline or online"
    )
    wandb_project: str = setting("tempo-megatron", "project of the W&B run")
    mlflow: TrackerMode = setting(
        TrackerMode.disabled,
        "log to MLflow too, which needs the extra `mlflow`: disabled, offline (a database in the run directory) or "
        "online (the server of MLFLOW_TRACKING_URI)",
    )
    mlflow_experiment: str = setting("tempo-megatron", "experiment of the MLflow run")
    token_samples: int = setting(
        2,
        "questions of each set (labeled, unlabeled, held-out) whose responses are recorded token by token at each "
        "evaluation, for the report; 0: none",
        at_least=0,
        at_most=64,
    )
