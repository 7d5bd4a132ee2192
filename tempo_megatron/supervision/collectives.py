"""Torch's flight record of this process's collectives."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import torch

_WAITING_FILES = (
    "torch/distributed/distributed_c10d.py",
    "megatron/core/pipeline_parallel/p2p_communication.py",
)
"""Files in which a main thread waits for tensors of other ranks. Torch does not record gloo's point-to-point
messages."""


def flight_record() -> str:
    """Return torch's records of gloo and of NCCL, each as one line of JSON."""
    c10d: Any = torch._C._distributed_c10d
    return f"{c10d._dump_fr_trace_json().decode()}\n{c10d._dump_nccl_trace_json().decode()}"


def main_thread_waits() -> bool:
    """Return whether the main thread is in a call that waits for other ranks. Any thread may call this."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename.endswith(_WAITING_FILES)


def collective_in_flight() -> bool:
    """Return whether a collective of this process has not ended. Any thread may call this.

    This includes collectives of other threads, and those that a GPU waits in while the main thread waits for the GPU.
    """
    return any(
        not entry.get("retired") and entry.get("state") != "completed"
        for backend in flight_record().splitlines()
        for entry in json.loads(backend).get("entries", ())
    )
