"""Ends a rank that failed. The first rank to fail logs its traceback; each other rank logs one line."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tempo_megatron.utils.distributed import rank_and_ranks
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

EXIT_CODE = 1
FAILED_KEY = "tempo/failed"
"""The store's key of the first rank that failed."""
HUNG_KEY = "tempo/hung"
"""The store's key of the ranks that hang. Its value names the ranks and, after a colon, the reason."""
_WAIT_SECONDS = 3.0
"""How long a rank whose collective broke waits for the failed rank to report."""
_PEER_LOST_MESSAGES = (
    "gloo",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket Timeout",
    "NCCL",
)


def end_failed_rank(error: BaseException, run_dir: Path) -> None:
    """Log why this rank failed and end its process, without waiting for an engine or a collective that still runs.

    The first rank to fail logs its traceback and writes it to `run_dir/failures/rank-K.txt`. A rank that fails later,
    or only because a peer is gone, logs which rank was first.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it to all ranks once one has failed
    rank, ranks = rank_and_ranks()
    name = f"rank {rank} on {socket.gethostname()}"
    cause = _cause_elsewhere(rank, _is_loss_of_a_peer(error)) if ranks > 1 else None
    if cause is None:
        text = f"{name} failed:\n{''.join(traceback.format_exception(error))}"
    elif cause:
        text = f"{name} ends because {cause}"
    else:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        text = f"{name} lost another rank, which reported no failure (was it killed?): {reason}"
    try:
        logger.error(text)
        if cause is None:
            (run_dir / "failures").mkdir(parents=True, exist_ok=True)
            (run_dir / "failures" / f"rank-{rank}.txt").write_text(text)
        sys.stdout.flush()
    finally:  # even if the disk is full
        os._exit(EXIT_CODE)


def _is_loss_of_a_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _PEER_LOST_MESSAGES)


def _cause_elsewhere(rank: int, peer_lost: bool) -> str | None:
    """Return what another rank did before this one failed.

    None if this rank is the first to fail; "" if it lost a peer and no rank has reported a failure.
    """
    try:
        store: Any = dist.distributed_c10d._get_default_store()
        if not peer_lost:
            first = store.compare_set(FAILED_KEY, "", str(rank)).decode()
            return None if first == str(rank) else f"rank {first} failed"
        wait_until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < wait_until:
            if store.check([FAILED_KEY]):
                return f"rank {store.get(FAILED_KEY).decode()} failed"
            if store.check([HUNG_KEY]):
                return f"rank {store.get(HUNG_KEY).decode().partition(':')[0].replace(' ', ', ')} hangs"
            time.sleep(0.1)
    except (dist.DistError, ValueError):  # the failed rank held the store, or no process group exists yet
        return "" if peer_lost else None
    return ""
