"""A recipe from its model to an evaluated one, as tasks that follow each other: convert, train, export, evaluate."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tempo_megatron.config import load_config

_CHECKPOINTS = "/checkpoints/i*-*[0-9]/state.json"
"""in a run's directory: a file of each checkpoint, interim ones too, and of no copy beside them"""


@dataclass(frozen=True)
class LaunchTask:
    name: str
    script: str
    """bash; a task of several ranks runs it in each of them"""
    all_nodes: bool = False
    """a rank on every device of every node of the job; otherwise one process on one node"""


def tasks(recipe: str, overrides: Sequence[str], python: str = sys.executable) -> list[LaunchTask]:
    """The tasks of a recipe with its overrides, each to run after the one before has succeeded.

    Paths are as the recipe has them: tasks run in the present directory. Everything goes into `run_dir`: the converted
    model into `start`, the exported one into `hf`, its results into `evaluation`. A recipe that names its own
    `policy.checkpoint` has nothing to convert. Raises ConfigError.
    """
    config = load_config(recipe, overrides)
    run = Path(config.run_dir)
    settings = [*overrides, "export=false"]
    found = []
    if not config.policy.checkpoint:
        start = run / "start"
        settings.append(f"policy.checkpoint={start}")
        convert = ["-m", "checkpoints_convert", "to-megatron", "--hf", config.model.hf_path, "--out", str(start)]
        # A run that has a checkpoint needs no start any more, which may be gone.
        there = f"[ -e {_quoted([str(start)])} ] || compgen -G {_quoted([str(run)])}'{_CHECKPOINTS}' >/dev/null"
        found.append(LaunchTask("convert", f"{there} || exec {_quoted([python, *convert])}"))
    train = ["-m", "tempo_megatron.cli", "train", recipe, *settings]
    export = ["-m", "tempo_megatron.cli", "export", str(run)]
    evaluate = ["-m", "tempo_megatron.cli", "eval", "--model", str(run / "hf"), "--recipe", str(run / "config.yaml")]
    evaluate += ["--out", str(run / "evaluation")]
    return [
        *found,
        LaunchTask("train", f"exec {_quoted([python, *train])}", all_nodes=True),
        LaunchTask("export", f"exec {_quoted([python, *export])}"),
        LaunchTask("evaluate", f"exec {_quoted([python, *evaluate])}"),
    ]


def _quoted(words: Sequence[str]) -> str:
    return shlex.join(words)
