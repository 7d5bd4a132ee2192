"""A run is a directory; it belongs to one recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tempo_megatron.config import Config, documented_keys, to_yaml
from tempo_megatron.whole_files import write_whole

_CONFIG = "config.yaml"
_MAY_CHANGE = (
    "run_dir",
    "loop.iterations",
    "logging.",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.asynchronous",
    "checkpoint.patience",
    "parallel.",
    "memory.",
    "model.recompute",
    "preflight.",
    "policy.micro_batch_tokens",
    "critic.micro_batch_tokens",
    "generation.tensor_parallel_size",
    "generation.max_sequences",
    "generation.memory_fraction",
    "generation.kv_cache_gib",
    "generation.enforce_eager",
    "generation.sleep",
    "grading.workers",
    "grading.judge_concurrency",
    "grading.judge_url",
    "generation.check_weights",
    "generation.log_prob_alarm",
    "generation.keep_rollouts",
    "generation.replay",
    "faults.",
)


def open_run(config: Config) -> None:
    """Make the run's directory and write the resolved config into it."""
    directory = Path(config.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / _CONFIG, to_yaml(config))
    interrupted_mark(directory).unlink(missing_ok=True)


def interrupted_mark(directory: Path) -> Path:
    """A file that says by what the run was asked to stop, once it has saved; gone once it goes on."""
    return directory / "interrupted"


def write_summary(directory: Path, summary: dict[str, Any]) -> str:
    """Make `summary.json`; returns its text."""
    text = json.dumps(summary, indent=2)
    write_whole(directory / "summary.json", text + "\n")
    return text


def saved_model(directory: Path) -> Path | None:
    """What a run's checkpoints hold beside the weights of its model, as a directory; None before the first."""
    return next(directory.glob("checkpoints/[!.]*/huggingface"), None)


def differences(config: Config) -> list[str]:
    """Settings in which an existing run directory was made by another recipe, a line each, and what to do; empty for a
    new one.

    What does not change what the run computes may differ: where it logs, how often it saves, how it is spread over
    memory and ranks, and how many iterations it has; once it has a `saved_model`, where the model's directory is. What
    was no setting yet as the run began had its default.
    """
    directory = Path(config.run_dir)
    path, may_change = directory / _CONFIG, (*_MAY_CHANGE, *(["model.hf_path"] if saved_model(directory) else []))
    if not path.is_file():
        return []
    theirs = OmegaConf.merge(OmegaConf.create(to_yaml(Config())), OmegaConf.load(path))
    ours = OmegaConf.create(to_yaml(config))
    found = []
    for key, _, _ in documented_keys():
        before, now = OmegaConf.select(theirs, key), OmegaConf.select(ours, key)
        if before != now and not key.startswith(may_change):
            found.append(f"run_dir {config.run_dir} was made by another recipe: {key} was {before}, is {now}")
    if found:
        found.append(
            f"run_dir {config.run_dir}: set these back to go on with it ({path} has all), or name another run_dir"
        )
    return found
