"""vLLM's shared memory between ranks on CPUs, under names that no other run has and no killed run leaves behind.

Under an external launcher vLLM names its segments after the ranks alone: a second run on the machine, or the next one
after a kill, would find the name taken.
"""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import torch.distributed as dist

_DIRECTORY = Path("/dev/shm")


def use_unique_names() -> str:
    """Put a token that all ranks share into the names, and the machine's name; returns the token. Call before the
    engine is made. Collective.

    Ranks of a replica that spans machines so have different names, by which vLLM knows that they share no memory.
    """
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator, _CPUSHMDistributed

    token = [f"tempo-{uuid.uuid4().hex[:12]}"]
    dist.broadcast_object_list(token, src=0)

    def make_group_name(communicator: CpuCommunicator) -> str:
        ranks = "-".join(map(str, communicator.ranks))
        return f"{token[0]}-{socket.gethostname()}-{communicator.unique_name.replace(':', '-')}-{ranks}"

    _CPUSHMDistributed.make_group_name = staticmethod(make_group_name)
    return token[0]


def unlink(token: str) -> None:
    """Take the names away once every rank has mapped the segments: memory is then freed however the run ends."""
    dist.barrier()
    for segment in _DIRECTORY.glob(f"*{token}*"):
        segment.unlink(missing_ok=True)  # each machine's, by whichever of its ranks comes first


def drop_queue() -> None:
    """Give up the queue of Python objects that vLLM makes for a replica's ranks: nothing under an external launcher
    uses it, and at the end of a run Python would warn that its memory leaks."""
    from vllm.distributed.parallel_state import get_tp_group

    get_tp_group().mq_broadcaster = None
