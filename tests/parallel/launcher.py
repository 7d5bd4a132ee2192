"""Start a script on several gloo ranks, with a time limit.

The ranks are forks of the warm server, which has imported what they need. `run_under_torchrun` starts them by the
launcher that users have.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from tempo_megatron.launch.torchrun import environment_of_ranks
from tempo_megatron.utils.ports import free_ports
from tests.warm.start import warm_python, warm_torchrun

ROOT = Path(__file__).parents[2]
_SHOWN = 30_000
"""An error shows this many characters of output: stacks of all threads of a rank, and torchrun's report after them."""
_GRACE_SECONDS = 30.0
"""Once a rank has failed, the others have this long to print their last words."""


def kill_tree(root: int) -> None:
    """Kill a process and all its descendants. torchrun's ranks have sessions of their own, so that one signal does not
    reach them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(root)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def run_ranks(script: Path | str, ranks: int, *arguments: object, timeout: float = 300) -> str:
    """What the script printed; "-m" stands for the module that follows. A failure or a hang ends all ranks and raises
    AssertionError with the output.

    With GPUs torchrun starts the ranks: CUDA does not survive a fork.
    """
    if torch.cuda.is_available():
        return run_under_torchrun(script, ranks, *arguments, timeout=timeout)
    with tempfile.NamedTemporaryFile("r+", prefix="ranks-", suffix=".log", errors="replace") as log:
        with Path(log.name).open("ab") as appended:
            processes = start_ranks(ranks, appended.fileno(), script, *arguments)
        try:
            ended_in_time = _ended(processes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        output = log.read()
    assert ended_in_time, f"no end within {timeout} s:\n{output[-_SHOWN:]}"
    codes = [process.returncode for process in processes]
    assert not any(codes), f"{output[-_SHOWN:]}\nexit codes by rank: {codes}"
    return output


def start_ranks(ranks: int, log: int, *command: object) -> list[subprocess.Popen[bytes]]:
    """Start `command`, a script or "-m" and a module with arguments, as ranks that are forks of the warm server.

    `log` is the descriptor of a file that gets their output. A rank ends with the process that is returned for it.
    As under torchrun, ranks of `tempo` leave the check of the labels to whoever starts them: here nobody checks them.
    """
    port = free_ports()[0]
    line = [*warm_python(), *map(str, command)]
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environment = environment_of_ranks() | {name: str(value) for name, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
    return processes


def _ended(processes: Sequence[subprocess.Popen[bytes]], timeout: float) -> bool:
    """Whether all ranks end within `timeout` seconds. Once a rank has failed, the others get SIGTERM, as from torchrun,
    and a while to end."""
    deadline = time.monotonic() + timeout
    while running := [process for process in processes if process.poll() is None]:
        if time.monotonic() >= deadline:
            return False
        if any(process.returncode for process in processes):
            for process in running:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_SECONDS)
            return True
        time.sleep(0.02)
    return True


def run_under_torchrun(script: Path | str, ranks: int, *arguments: object, timeout: float = 300) -> str:
    """The same by the launcher that users have. Its signals reach the ranks, and the output has its messages and exit
    codes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", script]
    process = subprocess.Popen(
        [str(part) for part in [*command, *arguments]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            **warm_torchrun(),
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
