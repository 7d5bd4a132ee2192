"""Start a script on several gloo ranks, with a time limit.

A rank spends 10 to 15 seconds on importing torch, Megatron and vLLM. `run_ranks` forks its ranks from one process that
has imported them for the whole test run (multiprocessing's forkserver); `run_under_torchrun` starts them as users do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import psutil
import torch

from tests.parallel import warm_rank

ROOT = Path(__file__).parents[2]
_SHOWN = 30_000
"""characters of the output in an error: stacks of all threads of a rank, and what torchrun says after them"""
_GRACE_SECONDS = 30.0
"""what the other ranks have for their last words once one has failed"""


def kill_tree(root: int) -> None:
    """A process and all that it started: torchrun's ranks are in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(root)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def run_ranks(script: Path, ranks: int, *arguments: object, timeout: float = 300) -> str:
    """What the script printed. A failure or a hang ends all ranks and is an AssertionError with the output.

    With GPUs the ranks are torchrun's: CUDA does not survive a fork of the process that asked for it.
    """
    if torch.cuda.is_available():
        return run_under_torchrun(script, ranks, *arguments, timeout=timeout)
    with tempfile.NamedTemporaryFile("r+", prefix="ranks-", suffix=".log", errors="replace") as log:
        processes = _fork(script, ranks, list(map(str, arguments)), Path(log.name))
        try:
            ended_in_time = _ended(processes, timeout)
        finally:
            for process in processes:
                if process.exitcode is None and process.pid:
                    kill_tree(process.pid)
                process.join()
        output = log.read()
    assert ended_in_time, f"no end within {timeout} s:\n{output[-_SHOWN:]}"
    codes = [process.exitcode for process in processes]
    assert not any(codes), f"{output[-_SHOWN:]}\nexit codes by rank: {codes}"
    return output


def _fork(script: Path, ranks: int, arguments: Sequence[str], log: Path) -> list[ForkServerProcess]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        process = _warm_parent().Process(target=warm_rank.run, args=(str(script), arguments, environment, str(log)))
        process.start()
        processes.append(process)
    return processes


@cache
def _warm_parent() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.parallel.preload"])
    return context


def _ended(processes: Sequence[ForkServerProcess], timeout: float) -> bool:
    """Whether all ranks end within `timeout` seconds. Once one has failed the others get SIGTERM, as from torchrun, and
    have a while for their last words."""
    deadline = time.monotonic() + timeout
    while running := [process for process in processes if process.exitcode is None]:
        if time.monotonic() >= deadline:
            return False
        if any(process.exitcode for process in processes):
            for process in running:
                process.terminate()
                process.join(_GRACE_SECONDS)
            return True
        wait([process.sentinel for process in running], deadline - time.monotonic())
    return True


def run_under_torchrun(script: Path, ranks: int, *arguments: object, timeout: float = 300) -> str:
    """As `run_ranks`, by the launcher that users have: its signals, its exit codes and its words are in the output."""
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
