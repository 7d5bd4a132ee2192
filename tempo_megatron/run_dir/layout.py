"""A run is a directory; it belongs to one recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tempo_megatron.config import Config, documented_keys, to_yaml
from tempo_megatron.utils.atomic_files import write_text_atomically

_CONFIG = "config.yaml"
_MAY_CHANGE = (
    "run_dir",
    "loop.iterations",
    "data.changed",
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
    "generation.max_num_seqs",
    "generation.gpu_memory_utilization",
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
    write_text_atomically(directory / _CONFIG, to_yaml(config))
    interrupted_mark(directory).unlink(missing_ok=True)


def interrupted_mark(directory: Path) -> Path:
    """A file that says by what the run was asked to stop, once it has saved; gone once it goes on."""
    return directory / "interrupted"


def write_summary(directory: Path, summary: dict[str, Any]) -> str:
    """Make `summary.json`; returns its text."""
    text = json.dumps(summary, indent=2)
    write_text_atomically(directory / "summary.json", text + "\n")
    return text


def read_summary(directory: Path) -> dict[str, Any] | None:
    """What `summary.json` says; None where the run has none."""
    path = directory / "summary.json"
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def saved_checkpoint(directory: Path) -> Path | None:
    """A checkpoint of a run that describes its models; None before the first.

    Of those undamaged the newest, but interim ones last: a run that is still ending removes them with its next save.
    """
    from tempo_megatron.megatron.checkpointing import saver
    from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE, has_intact_description

    checkpoints = directory / "checkpoints"
    newest_first = [
        *reversed(saver.complete_checkpoints(checkpoints)),
        *reversed(saver.resumable_checkpoints(checkpoints)),
    ]
    there = [checkpoint for checkpoint in newest_first if (checkpoint / HUGGING_FACE).is_dir()]
    return next(filter(has_intact_description, there), next(iter(there), None))


def saved_model(directory: Path) -> Path | None:
    """What a run's checkpoints hold beside the weights of its model, as a directory; None before the first."""
    from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE

    checkpoint = saved_checkpoint(directory)
    return checkpoint and checkpoint / HUGGING_FACE


def as_saved(config: Config) -> Config:
    """The config with its model described by the run's own checkpoint, once it has one: config.json and tokenizer are
    read there from then on, and `model.hf_path` may be gone."""
    saved = saved_model(Path(config.run_dir)) if config.run_dir else None
    return replace(config, model=replace(config.model, hf_path=str(saved))) if saved else config


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
