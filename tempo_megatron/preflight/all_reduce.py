"""Measure the all-reduce of one group of ranks, in a process of its own, by the backends that training uses.

NCCL may hang or take its process with it when a link is bad: the rank that started this one goes on and says so.
The address of the store comes by environment, the place in the group by arguments; one number is printed, GB/s.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

_MIB = 2**20


def main() -> None:
    """Raises RuntimeError when the sums are wrong; ends by itself after --seconds."""
    parser = argparse.ArgumentParser("all_reduce", description=__doc__)
    parser.add_argument("--group", required=True, help="name that this measurement alone has in the store")
    parser.add_argument("--rank", type=int, required=True, help="place in the group")
    parser.add_argument("--size", type=int, required=True, help="ranks of the group")
    parser.add_argument("--seconds", type=float, required=True, help="time limit")
    given = parser.parse_args()
    faulthandler.dump_traceback_later(given.seconds, exit=True)
    limit = timedelta(seconds=given.seconds)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=limit, wait_for_workers=False)
    # Sooner than this process ends itself: what gloo or NCCL waited for is in their errors.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=PrefixStore(given.group, store),
        rank=given.rank,
        world_size=given.size,
        timeout=0.8 * limit,
    )
    speed = bus_bandwidth(2 * _MIB, 3, "cpu")
    print(bus_bandwidth(256 * _MIB, 20, "cuda") if on_gpu else speed)
    dist.destroy_process_group()


def bus_bandwidth(size: int, times: int, device: str) -> float:
    """GB/s of an all-reduce of `size` bytes: those that each rank's link carries each way in a ring, over the seconds.

    Raises RuntimeError when a sum is wrong. Collective.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    values = torch.full((size // 4,), rank + 1.0, device=device)
    dist.all_reduce(values)
    expected = ranks * (ranks + 1) / 2
    if not bool((values == expected).all()):
        raise RuntimeError(f"an all-reduce gave {values.min()} to {values.max()} where every sum is {expected}")
    values.zero_()
    _wait(device)
    begun = time.monotonic()
    for _ in range(times):
        dist.all_reduce(values)
    _wait(device)
    return 2 * (ranks - 1) / ranks * size * times / (time.monotonic() - begun) / 1e9


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    else:
        dist.all_reduce(torch.zeros(1))


if __name__ == "__main__":
    main()
