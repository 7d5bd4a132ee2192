"""What a run measures, keeps and reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class WandbMode(StrEnum):
    disabled = "disabled"
    offline = "offline"
    online = "online"


@dataclass
class EvaluationConfig:
    every: int = setting(
        10, "iterations between evaluations; both ends are always evaluated. 0: only the ends", at_least=0
    )
    samples: int = setting(16, "responses a question", at_least=1)
    k: int = setting(8, "k of avg@k, pass@k and cons@k, at most `samples`", at_least=1)
    final_samples: int = setting(0, "responses a question at both ends; 0 takes `samples`", at_least=0)
    questions: int = setting(
        0,
        "questions of each set between the ends, of every source in proportion to its size; 0 takes all",
        at_least=0,
    )
    temperature: float = setting(1.0, "sampling temperature", at_least=0)
    top_p: float = setting(1.0, "nucleus sampling mass", above=0, at_most=1)


@dataclass
class CalibrationConfig:
    """Labeled questions that nothing is trained on: they measure the critic, open the gate, choose a checkpoint."""

    questions: int = setting(
        0, "labeled questions set aside, the first ones of a hashed order; 0: none is measured", at_least=0
    )
    samples: int = setting(4, "responses a question at each measurement", at_least=1)
    every: int = setting(1, "iterations between measurements", at_least=1)


@dataclass
class CheckpointConfig:
    every: int = setting(
        10, "iterations between checkpoints, in the critic start too; the last one is always saved", at_least=1
    )
    keep: int = setting(
        2, "newest checkpoints kept, beside the best and one that an interrupted run goes on from", at_least=1
    )
    keep_every: int = setting(
        0, "checkpoints of iterations that are multiples of this are kept too; 0: none", at_least=0
    )
    asynchronous: bool = setting(
        False,
        "write while the run goes on, from copies in host memory beside what rests there: of weights and, on the first "
        "of the data-parallel ranks, fp32 weights and Adam's moments",
    )
    select_best: bool = setting(False, "point checkpoints/best at the best one kept, by the rule in docs/algorithms.md")
    selection_prompts: int = setting(
        64,
        "unlabeled prompts whose responses the critic scores for each candidate; none where the policy learns from "
        "labeled ones alone",
        at_least=1,
    )
    selection_samples: int = setting(4, "responses a question, labeled and unlabeled, of a candidate", at_least=1)
    patience: int = setting(0, "stop once this many candidates have come after the best; 0: never", at_least=0)


@dataclass
class LoggingConfig:
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl")
    wandb: WandbMode = setting(WandbMode.disabled, "write to Weights & Biases too (needs its package): offline, online")
    wandb_project: str = setting("tempo-megatron", "project of the W&B run")
