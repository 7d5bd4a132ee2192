"""torchrun on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import psutil

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
"""variables of every rank, unless they are set already"""
_CHECKED = "TEMPO_CHECKED"
"""environment variable of ranks that `tempo` starts, which need not grade the labels again that it has graded"""
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started as one of a run's ranks: a launcher names all of its place, what is left of one
    in a shell may be a part."""
    return all(name in environment for name in _PLACE)


def started_this(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this rank."""
    return "TORCHELASTIC_RUN_ID" in environment


def is_checked(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the `tempo` that started this rank has graded its labels against themselves."""
    return environment.get(_CHECKED) == "1"


def launch_ranks(arguments: Sequence[str], processes: int) -> int:
    """Run `tempo` with these arguments as `processes` ranks; returns torchrun's exit code, 0 or 1.

    SIGTERM and SIGUSR1 go to the ranks, which save and end; torchrun itself, which would end them, does not hear of it.
    SIGINT is passed on, and ends them.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**ENVIRONMENT, **os.environ, _CHECKED: "1"}
    ranks = subprocess.Popen([*command, "-m", "tempo_megatron.cli", *arguments], env=environment)
    signal.signal(signal.SIGINT, lambda got, _: ranks.send_signal(got))
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda got, _: received.append(got))
    while True:
        try:
            return ranks.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if received and interrupt_ranks(ranks.pid, received[0]):
                received.clear()


def interrupt_ranks(launcher: int, number: int) -> bool:
    """Send the ranks that `launcher` started a signal, which they name as their reason. Whether there were any to tell:
    torchrun takes seconds to start them."""
    told = False
    with contextlib.suppress(psutil.Error):  # they end as they like
        for child in psutil.Process(launcher).children():
            if "tempo_megatron.cli" in child.cmdline():
                child.send_signal(number)
                told = True
    return told
