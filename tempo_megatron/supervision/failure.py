"""Which rank failed first: its traceback comes first in the log, the others say a line."""

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
KEY = "tempo/failed"
HUNG_KEY = "tempo/hung"
"""ranks that hang, and after a colon how that was seen"""
_WAIT_SECONDS = 3.0
"""for the rank whose end broke a collective to say why"""
_PEER_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout", "NCCL")


def end_of_failed_rank(error: BaseException, run_dir: Path) -> None:
    """Say what failed and end this process: what still runs in it (an engine, a collective) is not waited for.

    The first rank to fail prints its traceback, which `run_dir/failures/rank-K.txt` keeps too; one that fails later,
    or only because a peer is gone, says who was first.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it to all once one has failed: this line first
    rank, ranks = rank_and_ranks()
    where = f"rank {rank} on {socket.gethostname()}"
    other = _other(rank, _is_loss_of_a_peer(error)) if ranks > 1 else None
    if other is None:
        text = f"{where} failed:\n{''.join(traceback.format_exception(error))}"
    elif other:
        text = f"{where} ends because {other}"
    else:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        text = f"{where} lost a rank that ended without a word (killed?): {reason}"
    try:
        logger.error(text)
        if other is None:
            (run_dir / "failures").mkdir(parents=True, exist_ok=True)
            (run_dir / "failures" / f"rank-{rank}.txt").write_text(text)
        sys.stdout.flush()
    finally:  # a full disk, for one
        os._exit(EXIT_CODE)


def _is_loss_of_a_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_LOST)


def _other(rank: int, lost: bool) -> str | None:
    """What another rank did before this one failed: "" where it lost one and none has said a word, None where it is
    the first."""
    try:
        store: Any = dist.distributed_c10d._get_default_store()
        if not lost:
            failed = store.compare_set(KEY, "", str(rank)).decode()
            return None if failed == str(rank) else f"rank {failed} failed"
        ends = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < ends:
            if store.check([KEY]):
                return f"rank {store.get(KEY).decode()} failed"
            if store.check([HUNG_KEY]):
                return f"rank {store.get(HUNG_KEY).decode().partition(':')[0].replace(' ', ', ')} hangs"
            time.sleep(0.1)
    except (dist.DistError, ValueError):  # the store was the failed rank's, or there is no group yet
        return "" if lost else None
    return ""
