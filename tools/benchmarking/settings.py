"""The settings of the run that is measured: those of a recipe, or defaults, with what the benchmark replaces."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path

from tempo_megatron.config import Config, Fp8, load_config


def benchmark_config(options: argparse.Namespace, fp8: str | None, longest: int, *, on_gpus: bool) -> Config:
    """Returns the run's config: the recipes and settings among the overrides, with what the benchmark replaces.

    `longest` is the number of tokens of the longest response. Raises ConfigError as `load_config` does.
    """
    directory: Path = options.directory
    settings = {
        "run_dir": directory / "run",
        "model.hf_path": directory / "model",
        "data.labeled": f"[{{path: {directory / 'labeled.jsonl'}}}]",
        "data.unlabeled": f"[{{path: {directory / 'unlabeled.jsonl'}}}]",
        "data.max_prompt_tokens": options.prompt_tokens,
        "generation.max_response_tokens": longest,
        # What a recipe has and a benchmark has not: models start from random weights, a word is a token, and an
        # iteration has its steps alone.
        "data.held_out": "[]",
        "data.warm_start": "[]",
        "data.prompt_style": "none",
        "policy.checkpoint": "''",
        "critic.checkpoint": "''",
        "stages.warm_start.steps": 0,
        "stages.critic_start.iterations": 0,
        "calibration.questions": 0,
        "checkpoint.select_best": "false",
        "loop.gate": 0,
    }
    if not on_gpus:
        settings["model.precision"] = "fp32"
    requested = {
        "method": options.method,
        "model.fp8": fp8,
        "parallel.tensor_model_parallel_size": options.tp,
        "parallel.pipeline_model_parallel_size": options.pp,
        "parallel.virtual_pipeline_model_parallel_size": options.vpp,
        "parallel.context_parallel_size": options.cp,
        "parallel.expert_model_parallel_size": options.ep,
        "parallel.sequence_parallel": None if options.tp is None else str(options.tp > 1).lower(),
        "policy.optimizer.learning_rate": options.learning_rate,
        "critic.optimizer.learning_rate": options.learning_rate,
    }
    settings |= {key: value for key, value in requested.items() if value is not None}
    return load_config(None, [*(f"{key}={value}" for key, value in settings.items()), *options.overrides])


def with_fp8(config: Config, fp8: str | None) -> Config:
    """Returns the config with another FP8 recipe, unless that is None. Without FP8 no layer needs to keep bf16."""
    recipe = Fp8(fp8) if fp8 else config.model.fp8
    edges = 0 if recipe is Fp8.none else config.model.fp8_edges_in_bf16
    return replace(copy.deepcopy(config), model=replace(config.model, fp8=recipe, fp8_edges_in_bf16=edges))
