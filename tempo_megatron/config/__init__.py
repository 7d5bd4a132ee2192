"""Every setting of a run: typed, documented, and the same on a laptop and on a cluster.

A recipe is a YAML file of these dataclasses. `load_config` merges it with `key=value` overrides. An unknown key, or a
value of the wrong type or outside its bounds, raises a `ConfigError` that names the key and, for an unknown key, the
nearest known one.
"""

from tempo_megatron.config.data import DataChanged, DataConfig, Overlong, PromptStyle, SourceConfig, missing_files
from tempo_megatron.config.evaluation import (
    TOKEN_SAMPLE_RESPONSES,
    TOKEN_SAMPLE_TOKENS,
    CalibrationConfig,
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    TrackerMode,
)
from tempo_megatron.config.faults import FaultsConfig
from tempo_megatron.config.generation import CheckWeights, GenerationConfig, RolloutPrecision
from tempo_megatron.config.grading import ClusterBy, GradingConfig
from tempo_megatron.config.loading import ConfigError, documented_keys, load_checked, load_config, to_yaml
from tempo_megatron.config.memory import SHARE_OF_HOST, MemoryConfig
from tempo_megatron.config.methods import Comparison, ScrlConfig, TrapoConfig
from tempo_megatron.config.model import Fp8, ModelConfig, Numerics, ParallelConfig, Precision, Recompute
from tempo_megatron.config.preflight import BadNodes, PreflightConfig
from tempo_megatron.config.root import Config
from tempo_megatron.config.training import (
    AverageOver,
    Baseline,
    CriticConfig,
    CriticStartConfig,
    CriticTraining,
    GateOn,
    ImportanceWeight,
    Labels,
    LearningRateSchedule,
    LearnsFrom,
    LoopConfig,
    OptimizerConfig,
    Order,
    PolicyConfig,
    PolicyLoss,
    Rejection,
    ReplayedRoutes,
    RolloutCorrectionConfig,
    ScheduleUnit,
    StagesConfig,
    TargetRange,
    Truncated,
    WarmStartConfig,
)

__all__ = [
    "SHARE_OF_HOST",
    "TOKEN_SAMPLE_RESPONSES",
    "TOKEN_SAMPLE_TOKENS",
    "AverageOver",
    "BadNodes",
    "Baseline",
    "CalibrationConfig",
    "CheckWeights",
    "CheckpointConfig",
    "ClusterBy",
    "Comparison",
    "Config",
    "ConfigError",
    "CriticConfig",
    "CriticStartConfig",
    "CriticTraining",
    "DataChanged",
    "DataConfig",
    "EvaluationConfig",
    "FaultsConfig",
    "Fp8",
    "GateOn",
    "GenerationConfig",
    "GradingConfig",
    "ImportanceWeight",
    "Labels",
    "LearningRateSchedule",
    "LearnsFrom",
    "LoggingConfig",
    "LoopConfig",
    "MemoryConfig",
    "ModelConfig",
    "Numerics",
    "OptimizerConfig",
    "Order",
    "Overlong",
    "ParallelConfig",
    "PolicyConfig",
    "PolicyLoss",
    "Precision",
    "PreflightConfig",
    "PromptStyle",
    "Recompute",
    "Rejection",
    "ReplayedRoutes",
    "RolloutCorrectionConfig",
    "RolloutPrecision",
    "ScheduleUnit",
    "ScrlConfig",
    "SourceConfig",
    "StagesConfig",
    "TargetRange",
    "TrackerMode",
    "TrapoConfig",
    "Truncated",
    "WarmStartConfig",
    "documented_keys",
    "load_checked",
    "load_config",
    "missing_files",
    "to_yaml",
]
