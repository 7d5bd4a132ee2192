"""Checks how a run recovers on this machine's ranks: another layout, a killed rank, a rank that hangs.

usage: python tools/recovery.py DIRECTORY [--ranks 2] [--only layout,kill,hang] [key=value ...]

The runs are those of recipes/demo.yaml with few iterations, started by `tempo train` as a user starts them: over NCCL
and with vLLM on GPUs, over gloo on CPUs. Settings such as `model.precision=bf16` follow.

- layout: a run at TP1 ends after two iterations. Copies of it go on for one more, one at TP1 and one at TP2, from four
  ranks on with two pipeline stages. The third iteration must agree.
- kill: SIGKILL hits rank 1 once two iterations have ended. All processes must end, and the output must name rank 1.
- hang: the same with SIGSTOP, which the run's own watchdog must notice, in a save after five minutes of silence.

After a kill and a hang the same command must resume the run and end it.

DIRECTORY gets recovery.json with seconds and problems, and each run's directory and output. The exit code is 0 if no
check has a problem and 1 otherwise. `tools/kill_test.py` kills whole runs instead, many times, without an engine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
_RECIPE = ROOT / "recipes" / "demo.yaml"
_LIMIT = 900.0
"""Seconds after which a run that should have ended counts as lost."""
_SMALL = (
    "stages.warm_start.steps=2",
    "stages.critic_start.iterations=1",
    "stages.critic_start.prompts=16",
    "loop.labeled_prompts=16",
    "loop.unlabeled_prompts=16",
    "calibration.questions=0",
    "evaluation.every=100",
    "checkpoint.every=1",
    "logging.tensorboard=false",
    "export=false",
    "faults.lag_limit_seconds=20",
    "faults.stall_limit_seconds=20",
)
_COMPARED = ("critic/loss", "critic/gradient_norm", "policy/gradient_norm", "policy/reward", "policy/entropy")
_TOLERANCE = 1e-2
"""Relative. Sums over other ranks round differently, and in bf16 a response may then differ from some token on."""
_GENERATOR = "generation.tensor_parallel_size=1"
Figures = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """`tempo train` in a directory of its own under `parent`."""

    parent: Path
    name: str
    settings: tuple[str, ...]

    @property
    def run(self) -> Path:
        return self.parent / self.name

    @property
    def output(self) -> Path:
        return self.parent / f"{self.name}.log"

    def start(self, *settings: str) -> subprocess.Popen[bytes]:
        """Starts the run, or resumes it. Its output goes on in the same file."""
        command = [sys.executable, "-m", "tempo_megatron.cli", "train", str(_RECIPE), f"run_dir={self.run}"]
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [*command, *self.settings, *settings], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )

    def finish(self, *settings: str) -> list[str]:
        """Runs to the end. Returns what is wrong: [] where the run ends well."""
        exit_code = self.start(*settings).wait(_LIMIT)
        return [f"{self.name} ended with {exit_code}; see {self.output}"] if exit_code else []

    def metrics(self, iteration: int) -> dict[str, float] | None:
        """Returns the log of an iteration, None before it has one."""
        with suppress(FileNotFoundError):
            for line in (self.run / "metrics.jsonl").read_text().splitlines():
                row: dict[str, Any] = json.loads(line)
                if row.get("stage") == "train" and row["iteration"] == iteration:
                    return row
        return None


def layout(directory: Path, ranks: int, settings: Sequence[str]) -> Figures:
    """Returns the third iteration's metrics under both layouts, and the problems."""
    first = Command(directory, "first", (*settings, *_parallel(1, 1)))
    problems = first.finish("loop.iterations=2")
    figures: Figures = {}
    for name, tensor, pipeline in (("same", 1, 1), ("other", 2, 2 if ranks >= 4 else 1)):
        resumed = Command(directory, name, (*settings, *_parallel(tensor, pipeline)))
        if not problems:
            shutil.copytree(first.run, resumed.run, symlinks=True)
            problems = resumed.finish("loop.iterations=3")
        row = resumed.metrics(3) or {}
        layout_name = f"TP{tensor} PP{pipeline} DP{ranks // tensor // pipeline}"
        figures[layout_name] = {key: row[key] for key in _COMPARED if key in row}
    same, other = figures.values()
    return figures | {"problems": problems or differences(same, other)}


def _parallel(tensor: int, pipeline: int) -> tuple[str, ...]:
    sizes = {"tensor": tensor, "pipeline": pipeline}
    # The generator keeps its layout, so that both runs have the same responses.
    return (*(f"parallel.{name}_model_parallel_size={size}" for name, size in sizes.items()), _GENERATOR)


def differences(same: dict[str, float], other: dict[str, float]) -> list[str]:
    """Returns a line for each metric that a layout lacks, or that differs beyond the tolerance."""
    absent = [f"{key} is absent under the same layout" for key in _COMPARED if key not in same]
    return absent + [
        f"{key} is {other.get(key)}, under the same layout {value}"
        for key, value in same.items()
        if key not in other or abs(other[key] - value) > _TOLERANCE * max(abs(value), abs(other[key]))
    ]


def signalled(name: str, number: signal.Signals) -> Callable[[Path, int, Sequence[str]], Figures]:
    """Returns the check that sends rank 1 a signal."""

    def check(directory: Path, _: int, settings: Sequence[str]) -> Figures:
        command = Command(directory, name, tuple(settings))
        process = command.start("loop.iterations=4")
        problem = _wait_for(lambda: command.metrics(2) is not None, process)
        if problem:
            return {"problems": [problem]}
        family = psutil.Process(process.pid).children(recursive=True)
        written = command.output.stat().st_size
        rank_of(family, 1).send_signal(number)
        begun = time.monotonic()
        exit_code = process.wait(_LIMIT)
        _, left = psutil.wait_procs(family, timeout=60)
        figures: Figures = {"seconds until the end": round(time.monotonic() - begun, 1), "exit code": exit_code}
        problems = [f"process {each.pid} is left" for each in left]
        for each in left:
            each.kill()
        if exit_code == 0:
            problems.append("the run ended as if nothing had happened")
        if not names_rank(command.output.read_bytes()[written:].decode(errors="replace"), 1):
            problems.append(f"{command.output} does not name rank 1 after the signal")
        return figures | {"problems": problems + command.finish("loop.iterations=4")}

    return check


def names_rank(output: str, rank: int) -> bool:
    """Returns whether an output names a rank, as this project does (`rank 1`) or as torchrun does (`rank      : 1`)."""
    return re.search(rf"\brank(?: +:)? {rank}\b", output) is not None


def rank_of(processes: Sequence[psutil.Process], rank: int) -> psutil.Process:
    """Returns the process of a rank, the first of its family. Raises LookupError if there is none."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.environ().get("RANK") == str(rank):
                return process
    raise LookupError(f"none of {len(processes)} processes is rank {rank}")


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> str | None:
    """Waits until `ready`. Returns what went wrong before."""
    deadline = time.monotonic() + _LIMIT
    while not ready():
        if process.poll() is not None:
            return f"the run ended with {process.returncode} before its second iteration had"
        if time.monotonic() > deadline:
            process.kill()
            return f"no second iteration within {_LIMIT:.0f} s"
        time.sleep(0.05)
    return None


def _checked(name: str, directory: Path, ranks: int, settings: Sequence[str]) -> Figures:
    """Returns what a check finds. One that fails itself stops no other, and leaves no process of its runs."""
    try:
        return CHECKS[name](directory, ranks, settings)
    except (LookupError, subprocess.TimeoutExpired, psutil.Error) as error:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(str(directory) in word for word in process.cmdline()):
                    process.kill()
        return {"problems": [f"{type(error).__name__}: {error}"]}


CHECKS = {
    "layout": layout,
    "kill": signalled("kill", signal.SIGKILL),
    "hang": signalled("hang", signal.SIGSTOP),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("recovery.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="it must not exist")
    parser.add_argument("--ranks", type=int, default=2, help="(2)")
    parser.add_argument("--only", default=",".join(CHECKS), help="names of checks, with commas between them")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of all runs")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"no check is called {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    directory = options.directory.absolute()
    directory.mkdir(parents=True)
    model = directory / "model"
    subprocess.run([sys.executable, ROOT / "tools" / "make_demo_model.py", model], check=True)
    settings = (f"model.hf_path={model}", f"parallel.processes_per_node={options.ranks}", *_SMALL, *options.settings)
    results = {name: _checked(name, directory, options.ranks, settings) for name in names}
    (directory / "recovery.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return int(any(result["problems"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
