"""The tasks of a recipe, from its model to an evaluated model: convert, train, export, evaluate."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tempo_megatron.config import load_config

_CHECKPOINTS = "/checkpoints/i*-*[0-9]/state.json"
"""The pattern of checkpoints in a run directory, including interim ones, but not copies such as `.bak`."""


@dataclass(frozen=True)
class LaunchTask:
    """One task of a launch."""

    name: str
    script: str
    """The bash script of the task. Each rank of a task runs it."""
    all_nodes: bool = False
    """Whether the task has a rank on every device of every node. Otherwise it is one process on one node."""


def build_tasks(recipe: str, overrides: Sequence[str], python: str = sys.executable) -> list[LaunchTask]:
    """Return the tasks of a recipe with its overrides. Each runs after the one before has succeeded.

    Tasks run in the working directory and use the recipe's paths. Everything goes into `run_dir`: the converted model
    into `start`, the exported model into `hf`, its results into `evaluation`. A recipe with its own
    `policy.checkpoint` converts nothing. Raises ConfigError.
    """
    config = load_config(recipe, overrides)
    run = Path(config.run_dir)
    settings = [*overrides, "export=false"]
    convert_tasks = []
    if not config.policy.checkpoint:
        start = run / "start"
        settings.append(f"policy.checkpoint={start}")
        convert = ["-m", "checkpoints_convert", "to-megatron", "--hf", config.model.hf_path, "--out", str(start)]
        # A run that has a checkpoint needs no start, which may have been removed.
        exists = f"[ -e {_quoted([str(start)])} ] || compgen -G {_quoted([str(run)])}'{_CHECKPOINTS}' >/dev/null"
        convert_tasks.append(LaunchTask("convert", f"{exists} || exec {_quoted([python, *convert])}"))
    train = ["-m", "tempo_megatron.cli", "train", recipe, *settings]
    export = ["-m", "tempo_megatron.cli", "export", str(run)]
    evaluate = ["-m", "tempo_megatron.cli", "eval", "--model", str(run / "hf"), "--recipe", str(run / "config.yaml")]
    evaluate += ["--out", str(run / "evaluation")]
    return [
        *convert_tasks,
        LaunchTask("train", f"exec {_quoted([python, *train])}", all_nodes=True),
        LaunchTask("export", f"exec {_quoted([python, *export])}"),
        LaunchTask("evaluate", f"exec {_quoted([python, *evaluate])}"),
    ]


def _quoted(words: Sequence[str]) -> str:
    return shlex.join(words)
