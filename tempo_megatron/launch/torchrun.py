"""Starts the ranks of this machine under torchrun, and recognizes ranks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence

import psutil

RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
"""Every rank has these variables, unless they are set already."""
_CHECKED = "TEMPO_CHECKED"
"""This environment variable tells ranks that the `tempo` which starts them has graded the labels."""
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as a rank.

    A launcher sets all of `_RANK_VARIABLES`. A shell may hold some of them from an earlier job.
    """
    return all(name in environment for name in _RANK_VARIABLES)


def started_this_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this rank."""
    return "TORCHELASTIC_RUN_ID" in environment


def is_checked(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the `tempo` that started this rank has graded its labels against themselves."""
    return environment.get(_CHECKED) == "1"


def environment_of_ranks(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that `launch_ranks` gives its ranks."""
    return {**RANK_ENVIRONMENT, **environment, _CHECKED: "1"}


def launch_ranks(arguments: Sequence[str], processes: int) -> int:
    """Run `tempo` with these arguments as `processes` ranks; returns torchrun's exit code, 0 or 1.

    SIGTERM and SIGUSR1 go to the ranks, which save and end. torchrun does not get them: it would end the ranks.
    torchrun gets SIGINT and ends the ranks.
    """
    # torchrun is a fork: a Python of its own would spend two seconds on importing torch, which this process has done.
    agent = multiprocessing.get_context("fork").Process(target=_run_torchrun, args=(arguments, processes))
    agent.start()
    assert agent.pid is not None
    pid = agent.pid
    signal.signal(signal.SIGINT, lambda number, _: os.kill(pid, number))
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: received.append(number))
    while agent.exitcode is None:
        agent.join(timeout=0.5)
        if received and interrupt_ranks(pid, received[0]):
            received.clear()
    return agent.exitcode


def _run_torchrun(arguments: Sequence[str], processes: int) -> None:
    from torch.distributed.run import main

    os.environ.update(environment_of_ranks())
    main(["--standalone", f"--nproc-per-node={processes}", "-m", "tempo_megatron.cli", *arguments])


def interrupt_ranks(launcher: int, number: int) -> bool:
    """Send the ranks that `launcher` started a signal, which they name as their reason.

    Returns whether there were ranks: torchrun takes seconds to start them.
    """
    reached = False
    with contextlib.suppress(psutil.Error):  # a rank may end at any moment
        for child in psutil.Process(launcher).children():
            if "tempo_megatron.cli" in child.cmdline():
                child.send_signal(number)
                reached = True
    return reached
