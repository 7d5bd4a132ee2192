"""Measures the sizes of the recipes on two, four or eight GPUs: one command of the benchmark after the other.

usage: python tools/benchmark_sizes.py DIRECTORY --gpus 8 [--only NAME,NAME] [--seconds 570]
       python tools/benchmark_sizes.py DIRECTORY --gpus 4 --rehearse
       python tools/benchmark_sizes.py --gpus 8 --plan 141

Each measurement for that number of GPUs writes DIRECTORY/NAME.json and NAME.log. One that fails, or takes longer than
--seconds, stops no other; the exit code is then 1. `--rehearse` runs the same commands with tiny models and batches,
on CPUs too. `--plan GB` needs no GPU: it prints what `tempo plan` predicts for iterations on GPUs of so many GB.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_BENCHMARK = Path(__file__).with_name("benchmark.py")
_FAILED = 1
"""The exit code where a measurement failed."""
_TIMEOUT = 124
"""The exit code of `timeout` where the time was over."""


_WHOLE = "sync,switch,iteration"
_MICRO_BATCHES = ("policy.micro_batch_tokens=18432", "critic.micro_batch_tokens=18432")
"""Those of the recipes, whose longest sequence they hold. The benchmark's sequences are shorter."""
_14B = ("recipes/qwen3_14b_math.yaml", "--iteration-lengths=uniform:0:768", "--steps=1", *_MICRO_BATCHES)
"""The recipe's batch, with responses cut to what ten minutes allow."""
_30B = (
    "recipes/qwen3_30b_a3b_math.yaml",
    "--iteration-lengths=uniform:2304:4096",
    *_MICRO_BATCHES,
)
"""Responses of 3,200 tokens on average and at most 4,096, as in NeMo-RL's table. The recipe has more prompts."""
_30B_GRPO = (*_30B, "--steps=2", "--method=grpo", "loop.labeled_prompts=16")


def _30b_tempo(prompts: int) -> tuple[str, ...]:
    """Returns the arguments of TEMPO with so many labeled and unlabeled prompts. One timed iteration fits the time."""
    return (*_30B, "--steps=1", f"loop.labeled_prompts={prompts}", f"loop.unlabeled_prompts={prompts}")


_8B = (
    "recipes/qwen3_8b_math.yaml",
    "--iteration-lengths=mean:1060:4096",
    "--steps=2",
    "policy.mini_batches=1",
    "policy.micro_batch_tokens=8448",
    "generation.tensor_parallel_size=1",
)
"""Responses as in the results of two GPUs."""


@dataclass(frozen=True)
class Measurement:
    """One command of the benchmark."""

    name: str
    gpus: int
    shape: str
    sections: str
    arguments: tuple[str, ...]
    """Options, recipes and settings."""

    def command(self, options: Sequence[str]) -> list[str]:
        own = [self.shape, f"--gpus={self.gpus}", f"--sections={self.sections}", *self.arguments]
        return [sys.executable, str(_BENCHMARK), *own, *options]


def _8b(gpus: int) -> tuple[Measurement, ...]:
    """Returns the measurements whose cost a GPU should not grow with the number of GPUs: 256 responses on each."""
    grpo = (*_8B, "--method=grpo", f"loop.labeled_prompts={32 * gpus}")
    ttrl = (*_8B, "--method=ttrl", f"loop.unlabeled_prompts={32 * gpus}")
    partial = ("loop.partial_rollouts=0.5", "loop.staleness=2")
    return (
        Measurement("8b-grpo-tp1", gpus, "qwen3-8b", "iteration", (*grpo, "--tp=1")),
        Measurement("8b-grpo-tp2", gpus, "qwen3-8b", "iteration", (*grpo, "--tp=2")),
        Measurement("8b-ttrl-tp2", gpus, "qwen3-8b", "iteration", (*ttrl, "--tp=2")),
        Measurement("8b-ttrl-tp2-partial", gpus, "qwen3-8b", "iteration", (*ttrl, "--tp=2", *partial)),
    )


MEASUREMENTS = (
    *_8b(2),
    Measurement("14b-tp4", 4, "qwen3-14b", _WHOLE, (*_14B, "--tp=4")),
    # With all 48 layers an M-step would take 134 of 139 GiB by plan.
    Measurement("30b-a3b-grpo", 4, "qwen3-30b-a3b", "iteration", (*_30B_GRPO, "--ep=4", "--layers=40")),
    Measurement("30b-a3b-tempo", 4, "qwen3-30b-a3b", _WHOLE, (*_30b_tempo(8), "--ep=4", "--layers=40")),
    *_8b(4),
    Measurement("14b-tp4", 8, "qwen3-14b", _WHOLE, (*_14B, "--tp=4")),
    Measurement("14b-tp2", 8, "qwen3-14b", _WHOLE, (*_14B, "--tp=2")),
    Measurement("30b-a3b-grpo", 8, "qwen3-30b-a3b", "iteration", (*_30B_GRPO, "--ep=8")),
    Measurement("30b-a3b-tempo", 8, "qwen3-30b-a3b", _WHOLE, (*_30b_tempo(16), "--ep=8")),
    *_8b(8),
)
"""By number of GPUs, the most wanted first."""

_REHEARSAL = (
    "--layers=4",
    "--tp=2",
    "generation.tensor_parallel_size=1",
    "--iteration-lengths=uniform:4:16",
    "--prompt-tokens=8",
    "--steps=1",
    "loop.labeled_prompts=4",
    "loop.unlabeled_prompts=4",
    "loop.samples_per_prompt=2",
    "policy.mini_batches=1",
    "critic.mini_batches=1",
)
"""The tiny models have two KV heads, which is the largest TP size."""


def selected(gpus: int, names: Sequence[str]) -> list[Measurement]:
    """Returns the measurements for so many GPUs, all of them without names. Raises ValueError for an unknown name."""
    there = {measurement.name: measurement for measurement in MEASUREMENTS if measurement.gpus == gpus}
    unknown = [name for name in names if name not in there]
    if unknown or not there:
        raise ValueError(f"no measurement for {gpus} GPUs is called {', '.join(unknown)}; there are {', '.join(there)}")
    return [there[name] for name in names or there]


def rehearsal(measurement: Measurement) -> Measurement:
    """Returns the measurement with a tiny model and a few short responses."""
    shape, sizes = ("tiny-moe", ("--ep=2",)) if "a3b" in measurement.shape else ("tiny", ())
    return replace(measurement, shape=shape, arguments=(*measurement.arguments, *sizes, *_REHEARSAL))


def measure(measurement: Measurement, directory: Path, seconds: int) -> str | None:
    """Runs one measurement with its files in `directory`. Returns what went wrong, None if nothing did."""
    log = directory / f"{measurement.name}.log"
    files = [f"--json={directory / measurement.name}.json", f"--directory={directory / measurement.name}"]
    # torchrun ends its ranks within 30 seconds. In the foreground, so that Ctrl-C reaches it as well.
    command = ["timeout", "--foreground", "--kill-after=60", str(seconds), *measurement.command(files)]
    print(f"{measurement.name}: {shlex.join(measurement.command([]))}", flush=True)
    with log.open("w") as output:
        exit_code = subprocess.call(command, cwd=_ROOT, stdout=output, stderr=subprocess.STDOUT)
    if exit_code == _TIMEOUT:
        return f"{measurement.name} took longer than {seconds} seconds; see {log}"
    return f"{measurement.name} ended with {exit_code}; see {log}" if exit_code else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmark_sizes.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, nargs="?", help="for figures and logs")
    parser.add_argument("--gpus", type=int, required=True, help="2, 4 or 8")
    parser.add_argument("--only", default="", help="names of measurements, with commas between them")
    parser.add_argument("--seconds", type=int, default=570, help="limit of each measurement")
    parser.add_argument("--plan", type=float, metavar="GB", help="predict for GPUs of so many GB, and measure nothing")
    parser.add_argument("--rehearse", action="store_true", help="tiny models and batches")
    options = parser.parse_args(arguments)
    try:
        measurements = selected(options.gpus, [name for name in options.only.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    if options.plan:
        return max(subprocess.call(each.command([f"--plan={options.plan}"]), cwd=_ROOT) for each in measurements)
    if options.directory is None:
        parser.error("DIRECTORY is needed, except with --plan")
    directory = options.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    prepared = [rehearsal(each) if options.rehearse else each for each in measurements]
    problems = [problem for each in prepared if (problem := measure(each, directory, options.seconds))]
    print("\n".join(problems) or f"{len(prepared)} measurements: {directory}")
    return _FAILED if problems else 0


if __name__ == "__main__":
    sys.exit(main())
