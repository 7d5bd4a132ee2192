"""The config, summary and checkpoints in a run directory, and the settings that a resumed run may change.

`docs/faults.md` lists all files of a run directory.
"""

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
"""The settings, and prefixes of settings, that a run may change when it resumes: they do not change its results, except
that the load-balancing loss (`aux_loss_coefficient`) depends on which rows share a micro-batch."""


def create_run_directory(config: Config) -> None:
    """Create the run's directory and write the resolved config into it."""
    directory = Path(config.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_text_atomically(directory / _CONFIG, to_yaml(config))
    interrupted_mark(directory).unlink(missing_ok=True)


def interrupted_mark(directory: Path) -> Path:
    """Return the file that says why the run was interrupted. It exists from the save until the run resumes."""
    return directory / "interrupted"


def write_environment(directory: Path, facts: dict[str, str]) -> None:
    """Write `environment.json`: what the newest start of the run trains, and on what."""
    write_text_atomically(directory / "environment.json", json.dumps(facts, indent=2) + "\n")


def write_plan(directory: Path, plan: dict[str, Any] | None) -> None:
    """Write `plan.json`: the seconds and memory that the newest start of the run is expected to take.

    None removes the file of an earlier start, whose machine may have been another.
    """
    if plan is None:
        (directory / "plan.json").unlink(missing_ok=True)
        return
    write_text_atomically(directory / "plan.json", json.dumps(plan, indent=2) + "\n")


def write_summary(directory: Path, summary: dict[str, Any]) -> str:
    """Write `summary.json`; return its text."""
    text = json.dumps(summary, indent=2)
    write_text_atomically(directory / "summary.json", text + "\n")
    return text


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Return the contents of `summary.json`; None where the run has none."""
    path = directory / "summary.json"
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def saved_checkpoint(directory: Path) -> Path | None:
    """Return a checkpoint of a run that has its model's config and tokenizer; None before the first.

    It is the newest undamaged one. An interim one is returned only if there is no other, because a run that is still
    ending removes it with its next save.
    """
    from tempo_megatron.megatron.checkpointing import saver
    from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE, has_intact_description

    checkpoints = directory / "checkpoints"
    newest_first = [
        *reversed(saver.complete_checkpoints(checkpoints)),
        *reversed(saver.checkpoint_directories(checkpoints)),
    ]
    candidates = [checkpoint for checkpoint in newest_first if (checkpoint / HUGGING_FACE).is_dir()]
    return next(filter(has_intact_description, candidates), next(iter(candidates), None))


def saved_model(directory: Path) -> Path | None:
    """Return the directory with the model's config and tokenizer in a run's checkpoint; None before the first."""
    from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE

    checkpoint = saved_checkpoint(directory)
    return checkpoint and checkpoint / HUGGING_FACE


def as_saved(config: Config) -> Config:
    """Return the config with `model.hf_path` in the run's own checkpoint, if it has one.

    config.json and tokenizer are then read from there, so that the original directory may be gone.
    """
    saved = saved_model(Path(config.run_dir)) if config.run_dir else None
    return replace(config, model=replace(config.model, hf_path=str(saved))) if saved else config


def recipe_differences(config: Config) -> list[str]:
    """Return a line for each setting that differs from an existing run's recipe, and what to do; [] for a new run.

    Settings that do not change the run's results may differ: logging, saving, layout, memory and the number of
    iterations. Once the run has a `saved_model`, the model's directory may differ too. A setting that did not exist
    when the run began counts as its default.
    """
    directory = Path(config.run_dir)
    path, may_change = directory / _CONFIG, (*_MAY_CHANGE, *(["model.hf_path"] if saved_model(directory) else []))
    if not path.is_file():
        return []
    saved_settings = OmegaConf.merge(OmegaConf.create(to_yaml(Config())), OmegaConf.load(path))
    settings = OmegaConf.create(to_yaml(config))
    lines = []
    for key, _, _ in documented_keys():
        before, now = OmegaConf.select(saved_settings, key), OmegaConf.select(settings, key)
        if before != now and not key.startswith(may_change):
            lines.append(f"run_dir {config.run_dir} was made by another recipe: {key} was {before}, is {now}")
    if lines:
        lines.append(
            f"run_dir {config.run_dir}: set these back to go on with it ({path} has all), or name another run_dir"
        )
    return lines
