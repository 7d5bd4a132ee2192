"""torchrun on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
"""variables of every rank, unless they are set already"""


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started as one of a run's ranks."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `tempo` with these arguments as `processes` ranks; returns torchrun's exit code, 0 or 1.

    SIGINT and SIGTERM are passed on, so that stopping the launcher stops the ranks.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    ranks = subprocess.Popen([*command, "-m", "tempo_megatron.cli", *arguments], env={**ENVIRONMENT, **os.environ})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _: ranks.send_signal(got))
    return ranks.wait()
