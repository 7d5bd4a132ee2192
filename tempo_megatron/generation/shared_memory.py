"""Gives vLLM's shared memory between CPU ranks unique names, and removes the names while the run uses the memory.

Under an external launcher vLLM names its segments after the ranks alone. The names would collide with those of a second
run on the machine, or of a killed run.
"""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import torch.distributed as dist

_DIRECTORY = Path("/dev/shm")


def use_unique_names() -> str:
    """Adds the machine's name and a random token that all ranks share to the names; returns the token. Collective.

    Call it before the engine starts. Ranks of a replica that spans machines get different names, from which vLLM
    concludes that they share no memory.
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
    """Removes the names once every rank has mapped the segments, so any end of the run frees the memory. Collective."""
    dist.barrier()
    for segment in _DIRECTORY.glob(f"*{token}*"):
        segment.unlink(missing_ok=True)  # The first rank of each machine to get here removes it.


def drop_queue() -> None:
    """Drops the queue of Python objects that vLLM creates for a replica's ranks.

    Nothing uses it under an external launcher, and Python would report its memory as leaked at the end of the run.
    """
    from vllm.distributed.parallel_state import get_tp_group

    get_tp_group().mq_broadcaster = None
