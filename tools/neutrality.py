"""Whether a change of the code changes what training computes: three short runs, and their hashes.

usage: python tools/neutrality.py DIRECTORY [key=value ...]
       python tools/neutrality.py DIRECTORY --against OTHER [--renamed old=new ...]

The first form trains the demo's model on two ranks by TEMPO, PPO and TTRL, through every stage and eight iterations,
into DIRECTORY. Run it in two checkouts. The second form compares the two directories: every line of metrics without
timings and memory, and the exported weights. Exit codes: 0 all bits agree, 1 something differs (it is named).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
UNREPEATABLE = ("seconds/", "memory/")
"""prefixes of metrics that no two runs share"""
SHORT = (
    "parallel.tensor_model_parallel_size=2",
    "generation.max_num_seqs=256",
    "stages.warm_start.steps=60",
    "stages.critic_start.iterations=4",
    "stages.critic_start.prompts=64",
    "loop.iterations=8",
    "loop.labeled_prompts=64",
    "loop.unlabeled_prompts=64",
    "calibration.questions=32",
    "checkpoint.every=4",
    "checkpoint.select_best=true",
    "checkpoint.selection_prompts=16",
    "evaluation.every=4",
    "evaluation.samples=8",
    "evaluation.final_samples=8",
)
METHODS = {
    "tempo": ("method=tempo",),
    "ppo": ("method=ppo",),
    "ttrl": ("method=ttrl", "loop.unlabeled_prompts=16", "loop.samples_per_prompt=8"),
}


def train(directory: Path, overrides: list[str]) -> None:
    """Runs of all methods below `directory`, each from the demo's model. Raises CalledProcessError where one fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    model = directory / "model"
    if not model.is_dir():
        command = [sys.executable, REPOSITORY / "tools/make_demo_model.py", model]
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environment)
    for name, settings in METHODS.items():
        command = [sys.executable, "-m", "tempo_megatron.cli", "train", REPOSITORY / "recipes/demo.yaml"]
        command += [f"run_dir={directory / name}", f"model.hf_path={model}", *SHORT, *settings, *overrides]
        with (directory / f"{name}.log").open("w") as log:
            subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)


def metrics_of(run: Path, renamed: Mapping[str, str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl without timings and memory. `renamed` replaces words in keys and in text."""
    text = (run / "metrics.jsonl").read_text()
    for old, new in renamed.items():
        text = text.replace(old, new)
    lines = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(UNREPEATABLE)} for line in lines]


def digest_of_metrics(lines: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()


def digest_of_weights(run: Path) -> str:
    """One SHA-256 over all exported weight files of a run."""
    digest = hashlib.sha256()
    for file in sorted((run / "hf").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def differing_metrics(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """A line for each metric of run `name` that differs, and one if the numbers of lines differ."""
    differences = []
    for number, (old, new) in enumerate(zip(before, after, strict=False), 1):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        differences += [f"{name}: line {number}: {key}: {old.get(key)} -> {new.get(key)}" for key in keys]
    if len(before) != len(after):
        differences.append(f"{name}: {len(before)} lines of metrics -> {len(after)}")
    return differences


def compare(directory: Path, other: Path, renamed: Mapping[str, str]) -> list[str]:
    """What differs between the runs of two checkouts; hashes of what agrees are printed."""
    differences = []
    for name in METHODS:
        before, after = metrics_of(other / name, renamed), metrics_of(directory / name, {})
        differences += differing_metrics(name, before, after)
        old_weights, new_weights = digest_of_weights(other / name), digest_of_weights(directory / name)
        if old_weights != new_weights:
            differences.append(f"{name}: exported weights {old_weights} -> {new_weights}")
        print(f"{name}: {len(after)} lines of metrics {digest_of_metrics(after)}, weights {new_weights}")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings besides those of the three runs")
    parser.add_argument("--against", type=Path, help="the other checkout's directory")
    parser.add_argument(
        "--renamed", nargs="*", default=[], metavar="old=new", help="words in metrics of the other checkout"
    )
    arguments = parser.parse_args()
    if not arguments.against:
        arguments.directory.mkdir(parents=True, exist_ok=True)
        train(arguments.directory.resolve(), arguments.overrides)
        return 0
    renamed = dict(pair.split("=", 1) for pair in arguments.renamed)
    differences = compare(arguments.directory, arguments.against, renamed)
    print("\n".join(differences[:50]) or "all bits agree")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
