"""`tempo launch` with NeMo-Run on this machine, as a user runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.warm.start import warm_python


def test_nemo_runs_own_files_are_in_the_run_directory(recipe: Path, nemo_home: Path) -> None:
    """Scripts and logs are in the run directory, which the nodes share, and not in the home directory.

    A dry run does not make the run directory.
    """
    home, run = recipe.parent / "home", recipe.parent / "run"
    warm = warm_python()
    environment = {name: value for name, value in os.environ.items() if name != "NEMORUN_HOME"} | {"HOME": str(home)}

    def launch(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*warm, "-m", "tempo_megatron.cli", "launch", str(recipe), "--executor", *options]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )

    home.mkdir()
    dry = launch("slurm", "--dry-run")
    assert f"{run}/nemo_run/experiments/recipe/" in dry.stdout and not run.exists(), dry.stderr
    assert launch("local", "data.labeled=[{task: unheard_of, size: 3}]").returncode == 1  # refused by the training
    assert list(run.glob("nemo_run/experiments/recipe/*/convert/scripts/convert.sh"))
    assert not list(home.glob(".nemo*"))
