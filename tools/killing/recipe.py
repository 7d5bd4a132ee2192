"""The recipe of the killed runs: as small as possible, with everything that a checkpoint can hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

_WORDS = {"task": "spell_backward", "options": {"min_word_len": 4, "max_word_len": 5}}
_RECIPE: dict[str, Any] = {
    "model": {"precision": "fp32"},
    "data": {
        "labeled": [{**_WORDS, "seed": 1000, "size": 40}],
        "unlabeled": [{**_WORDS, "seed": 2000, "size": 12}],
        "warm_start": [{**_WORDS, "seed": 4000, "size": 200}],
        "max_prompt_tokens": 12,
    },
    "generation": {"max_response_tokens": 8, "kv_cache_gib": 0.1},
    "stages": {"warm_start": {"steps": 1, "batch_size": 8}, "critic_start": {"iterations": 1, "prompts": 2}},
    "loop": {"labeled_prompts": 2, "unlabeled_prompts": 2, "samples_per_prompt": 2, "partial_rollouts": 0.5},
    "critic": {"optimizer": {"learning_rate": 1e-3}, "mini_batches": 2, "micro_batch_tokens": 128},
    "policy": {
        "optimizer": {"learning_rate": 1e-4},
        "mini_batches": 2,
        "micro_batch_tokens": 128,
        "clip_range_low": 0.1,
        "clip_range_high": 0.15,
        "kl_coefficient": 0.1,
        "rollout_correction": {"weight": "token", "cap": 2.0},
    },
    "calibration": {"questions": 4},
    "evaluation": {"every": 4, "samples": 2, "k": 2},
    "checkpoint": {
        "every": 1,
        "keep": 2,
        "keep_every": 4,
        "select_best": True,
        "selection_prompts": 4,
        "selection_samples": 2,
    },
    "memory": {"offload_on_cpu": True},
    "logging": {"tensorboard": False},
}


def write_recipe(directory: Path, model: Path | None, ranks: int, iterations: int) -> Path:
    """Writes the recipe for tensor-parallel ranks and returns its path. Without `model` it makes a demo model."""
    if model is None:
        model = directory / "model"
        script = Path(__file__).parents[1] / "make_demo_model.py"
        subprocess.run([sys.executable, script, model], check=True)
    recipe = {
        **_RECIPE,
        "model": {**_RECIPE["model"], "hf_path": str(model.absolute())},
        "loop": {**_RECIPE["loop"], "iterations": iterations},
        "parallel": {"processes_per_node": ranks, "tensor_model_parallel_size": ranks},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
