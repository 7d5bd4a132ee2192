"""All settings of a run."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config.data import DataConfig
from tempo_megatron.config.evaluation import CalibrationConfig, CheckpointConfig, EvaluationConfig, LoggingConfig
from tempo_megatron.config.faults import FaultsConfig
from tempo_megatron.config.fields import setting
from tempo_megatron.config.grading import GradingConfig
from tempo_megatron.config.memory import MemoryConfig
from tempo_megatron.config.model import GenerationConfig, ModelConfig, ParallelConfig
from tempo_megatron.config.preflight import PreflightConfig
from tempo_megatron.config.training import CriticConfig, LoopConfig, PolicyConfig, StagesConfig


@dataclass
class Config:
    run_dir: str = setting("", "directory of everything that the run writes (required); the same command resumes it")
    seed: int = setting(0, "seed that every random choice of training is hashed from; evaluation always uses the same")
    method: str = setting("tempo", "what the policy learns from: a method by name, or package.module.Class of your own")
    export: bool = setting(True, "write the final policy as a Hugging Face directory, run_dir/hf")
    model: ModelConfig = setting(ModelConfig(), "the model")
    parallel: ParallelConfig = setting(ParallelConfig(), "how it is spread over ranks")
    memory: MemoryConfig = setting(MemoryConfig(), "what rests in host memory while others work on a GPU")
    preflight: PreflightConfig = setting(
        PreflightConfig(), "checks of the nodes, before training and by `tempo doctor`"
    )
    data: DataConfig = setting(DataConfig(), "questions")
    generation: GenerationConfig = setting(GenerationConfig(), "the generator and its sampling")
    grading: GradingConfig = setting(GradingConfig(), "how responses are graded")
    policy: PolicyConfig = setting(PolicyConfig(), "the M-step")
    critic: CriticConfig = setting(CriticConfig(), "the E-step")
    stages: StagesConfig = setting(StagesConfig(), "what comes before the first iteration")
    loop: LoopConfig = setting(LoopConfig(), "the iterations")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "evaluation during the run")
    calibration: CalibrationConfig = setting(CalibrationConfig(), "measuring the critic")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "checkpoints")
    faults: FaultsConfig = setting(FaultsConfig(), "when a run gives up")
    logging: LoggingConfig = setting(LoggingConfig(), "where metrics go")
