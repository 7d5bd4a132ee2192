"""Starts the ranks of this machine under torchrun, and recognizes ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import psutil

RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
"""The variables of every rank, unless they are already set."""
_CHECKED = "TEMPO_CHECKED"
"""The environment variable of ranks whose `tempo` parent has already graded the labels against themselves."""
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process was started as a rank.

    A launcher sets all rank variables. Leftovers of another launcher in a shell may be only a part of them.
    """
    return all(name in environment for name in _RANK_VARIABLES)


def started_this_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether torchrun started this rank."""
    return "TORCHELASTIC_RUN_ID" in environment


def is_checked(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the `tempo` that started this rank has graded its labels against themselves."""
    return environment.get(_CHECKED) == "1"


def launch_ranks(arguments: Sequence[str], processes: int) -> int:
    """Run `tempo` with these arguments as `processes` ranks. Returns torchrun's exit code, 0 or 1.

    SIGTERM and SIGUSR1 go to the ranks, which save and end. They bypass torchrun, which would kill the ranks. SIGINT
    goes to torchrun, which ends the ranks.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**RANK_ENVIRONMENT, **os.environ, _CHECKED: "1"}
    ranks = subprocess.Popen([*command, "-m", "tempo_megatron.cli", *arguments], env=environment)
    signal.signal(signal.SIGINT, lambda number, _: ranks.send_signal(number))
    received: list[int] = []
    for stop_signal in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(stop_signal, lambda number, _: received.append(number))
    while True:
        try:
            return ranks.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if received and interrupt_ranks(ranks.pid, received[0]):
                received.clear()


def interrupt_ranks(launcher: int, number: int) -> bool:
    """Send a signal to the ranks that `launcher` (a process id) started. Returns whether any rank existed.

    torchrun takes seconds to start them. The ranks report this signal as the reason of their interruption.
    """
    sent = False
    with contextlib.suppress(psutil.Error):  # a rank may end at any time
        for child in psutil.Process(launcher).children():
            if "tempo_megatron.cli" in child.cmdline():
                child.send_signal(number)
                sent = True
    return sent
