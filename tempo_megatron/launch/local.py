"""Starts ranks on this machine and returns their own exit code. torchrun turns every failure into 1."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from tempo_megatron.launch.torchrun import RANK_ENVIRONMENT
from tempo_megatron.utils.ports import free_ports


def launch_locally(arguments: Sequence[str], processes: int) -> int:
    """Run `tempo` as `processes` ranks, which must end by themselves. Returns the highest exit code."""
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": free_ports()[0]}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tempo_megatron.cli", *arguments],
            env={
                **RANK_ENVIRONMENT,
                **{name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")},
                **{name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            },
        )
        for rank in range(processes)
    ]
    return max(abs(process.wait()) for process in ranks)
