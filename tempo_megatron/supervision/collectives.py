"""What torch has on record of this process's collectives."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import torch

_WAITING = ("torch/distributed/distributed_c10d.py", "megatron/core/pipeline_parallel/p2p_communication.py")
"""where a main thread waits for others' tensors: over gloo, messages from one rank to another are on no record"""


def record() -> str:
    """Torch's records, JSON: over gloo, and over NCCL."""
    c10d: Any = torch._C._distributed_c10d
    return f"{c10d._dump_fr_trace_json().decode()}\n{c10d._dump_nccl_trace_json().decode()}"


def main_thread_waits() -> bool:
    """Whether the main thread is in a call that waits for other ranks. Any thread may ask."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename.endswith(_WAITING)


def under_way() -> bool:
    """Whether a collective of this process has not ended: those that a GPU waits in while the main thread waits for the
    GPU, and those of other threads. Any thread may ask."""
    return any(
        not entry.get("retired") and entry.get("state") != "completed"
        for part in record().splitlines()
        for entry in json.loads(part).get("entries", ())
    )
