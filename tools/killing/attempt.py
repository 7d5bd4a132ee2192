"""One attempt at a run, forked from this process. All imports are done here, so a restart takes a second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from killing.recorded import Parity, Recorded
from tempo_megatron.config import Config, load_config
from tempo_megatron.megatron import cpu
from tempo_megatron.training.build import build_run
from tempo_megatron.training.loop import train
from tempo_megatron.utils.ports import free_ports

_FORK = multiprocessing.get_context("fork")


class Attempt:
    """The ranks of a run, in one process group. Their output goes to `log`."""

    def __init__(self, recipe: Path, overrides: list[str], ranks: int, log: Path) -> None:
        cpu.install()  # imports megatron-core
        config = load_config(recipe, overrides)
        self._log = log
        self._process = _FORK.Process(target=_run_ranks, args=(config, ranks, log))
        self._process.start()
        self._group = self._process.pid
        assert self._group is not None
        os.setpgid(self._group, self._group)  # also in the child, because either may be first

    def ended(self, seconds: float) -> bool:
        """Returns whether the run ends by itself within this time. Raises RuntimeError if it fails."""
        self._process.join(seconds)
        if self._process.exitcode:
            raise RuntimeError(f"the run failed; {self._log} says why")
        return self._process.exitcode == 0

    def kill(self) -> None:
        """Kills all processes at once, as the kernel does."""
        os.killpg(self._group, signal.SIGKILL)
        self._process.join()


def _run_ranks(config: Config, ranks: int, log: Path) -> None:
    """Leads the process group: starts the ranks and waits for them."""
    os.setpgid(0, 0)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    [port] = free_ports()
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        processes.append(_FORK.Process(target=_run_rank, args=(config, rank, ranks, port)))
        processes[-1].start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


def _run_rank(config: Config, rank: int, ranks: int, port: int) -> None:
    rank_variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    address_variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**rank_variables, **address_variables}.items()})
    torch.set_num_threads(1)
    train(config, partial(build_run, make_generator=lambda *_: Recorded(), make_grader=Parity))
