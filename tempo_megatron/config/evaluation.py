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
    every: int = setting(10, "iterations between evaluations; both ends are always evaluated. 0: only the ends")
    samples: int = setting(16, "responses a question")
    k: int = setting(8, "k of avg@k, pass@k and cons@k, at most `samples`")
    final_samples: int = setting(0, "responses a question at both ends; 0 takes `samples`")
    max_questions: int = setting(0, "questions of each set between the ends, the first ones; 0 takes all")
    temperature: float = setting(1.0, "sampling temperature")
    top_p: float = setting(1.0, "nucleus sampling mass")


@dataclass
class CalibrationConfig:
    """Labelled questions that nothing is trained on: they measure the critic, open the gate, choose a checkpoint."""

    questions: int = setting(0, "labelled questions set aside, the first ones of a hashed order; 0: none is measured")
    samples: int = setting(4, "responses a question at each measurement")
    every: int = setting(1, "iterations between measurements")


@dataclass
class CheckpointConfig:
    every: int = setting(10, "iterations between checkpoints, in the critic start too; the last one is always saved")
    keep: int = setting(2, "newest checkpoints kept, beside the best and one that an interrupted run goes on from")
    keep_every: int = setting(0, "checkpoints of iterations that are multiples of this are kept too; 0: none")
    asynchronous: bool = setting(
        False,
        "write while the run goes on, from copies in host memory beside what rests there: of weights and, on the first "
        "of the data-parallel ranks, fp32 weights and Adam's moments",
    )
    choose: bool = setting(False, "point checkpoints/best at the best one kept, by the rule in docs/algorithms.md")
    choose_prompts: int = setting(64, "unlabelled prompts whose responses the critic scores for each candidate")
    choose_samples: int = setting(4, "responses a question, labelled and unlabelled, of a candidate")
    patience: int = setting(0, "stop once this many candidates have come after the best; 0: never")


@dataclass
class LoggingConfig:
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl")
    wandb: WandbMode = setting(WandbMode.disabled, "write to Weights & Biases too (needs its package): offline, online")
    wandb_project: str = setting("tempo-megatron", "project of the W&B run")
