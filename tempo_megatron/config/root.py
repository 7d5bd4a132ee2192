"""All settings of a run."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config.data import DataConfig
from tempo_megatron.config.evaluation import CalibrationConfig, CheckpointConfig, EvaluationConfig, LoggingConfig
from tempo_megatron.config.faults import FaultsConfig
from tempo_megatron.config.fields import setting
from tempo_megatron.config.generation import GenerationConfig
from tempo_megatron.config.grading import GradingConfig
from tempo_megatron.config.memory import MemoryConfig
from tempo_megatron.config.model import ModelConfig, Numerics, ParallelConfig
from tempo_megatron.config.preflight import PreflightConfig
from tempo_megatron.config.training import CriticConfig, LoopConfig, PolicyConfig, StagesConfig


@dataclass
class Config:
    run_dir: str = setting(
        "", "directory of all files that the run writes (required); the same command resumes the run"
    )
    seed: int = setting(0, "seed of every random choice in training; evaluation has the same seeds in every run")
    method: str = setting(
        "tempo", "method that the policy learns by: its name, or package.module.Class of your own method"
    )
    export: bool = setting(True, "write the final policy as a Hugging Face directory, run_dir/hf")
    numerics: Numerics = setting(
        Numerics.default,
        "kernels of generator and policy: default, each its fastest; exact, the same in both, so that log-probs agree "
        "to the last bit",
    )
    model: ModelConfig = setting(ModelConfig(), "the model and its precision")
    parallel: ParallelConfig = setting(ParallelConfig(), "how the model is distributed over ranks")
    memory: MemoryConfig = setting(MemoryConfig(), "which state of idle models moves to host memory")
    preflight: PreflightConfig = setting(
        PreflightConfig(), "checks of the nodes, before training and by `tempo doctor`"
    )
    data: DataConfig = setting(DataConfig(), "questions and prompts")
    generation: GenerationConfig = setting(GenerationConfig(), "the vLLM generator and its sampling")
    grading: GradingConfig = setting(GradingConfig(), "how responses are graded")
    policy: PolicyConfig = setting(PolicyConfig(), "the policy and its M-step")
    critic: CriticConfig = setting(CriticConfig(), "the critic and its E-step")
    stages: StagesConfig = setting(StagesConfig(), "stages before the first iteration")
    loop: LoopConfig = setting(LoopConfig(), "the iterations")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "evaluation during the run")
    calibration: CalibrationConfig = setting(
        CalibrationConfig(), "measurements of the critic on labeled questions that are set aside"
    )
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "checkpoints")
    faults: FaultsConfig = setting(FaultsConfig(), "when a run stops because of faults")
    logging: LoggingConfig = setting(LoggingConfig(), "where metrics go")
