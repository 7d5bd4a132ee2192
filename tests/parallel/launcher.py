"""Start a script on several gloo ranks, with a time limit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_SHOWN = 30_000
"""characters of the output in an error: stacks of all threads of a rank, and what torchrun says after them"""


def kill_tree(root: int) -> None:
    """A process and all that it started: torchrun's ranks are in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(root)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def run_ranks(script: Path, ranks: int, *arguments: object, timeout: float = 300) -> str:
    """What the script printed. A failure or a hang ends all ranks and is an AssertionError with the output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", script]
    process = subprocess.Popen(
        [str(part) for part in [*command, *arguments]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        },
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        output, _ = process.communicate()
        raise AssertionError(f"no end within {timeout} s:\n{output[-_SHOWN:]}") from None
    assert process.returncode == 0, output[-_SHOWN:]
    return output
