"""Measures the all-reduce of one group of ranks in a process of its own, with the backends that training uses.

NCCL may hang or crash its process if a link is bad. The rank that started this process survives and reports that. The
environment gives the address of the store, and the arguments give the rank in the group. The process prints one
number, in GB/s.
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
    """Measure and print the bandwidth. Raises RuntimeError if a sum is wrong. Ends the process after --seconds."""
    parser = argparse.ArgumentParser("all_reduce", description=__doc__)
    parser.add_argument("--group", required=True, help="name of this measurement in the store, used by no other")
    parser.add_argument("--rank", type=int, required=True, help="rank within the group")
    parser.add_argument("--size", type=int, required=True, help="number of ranks in the group")
    parser.add_argument("--seconds", type=float, required=True, help="time limit")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.seconds, exit=True)
    limit = timedelta(seconds=options.seconds)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=limit, wait_for_workers=False)
    # The timeout comes before the end of this process, so that the errors of gloo or NCCL are printed.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=PrefixStore(options.group, store),
        rank=options.rank,
        world_size=options.size,
        timeout=0.8 * limit,
    )
    speed = bus_bandwidth(2 * _MIB, 3, "cpu")
    print(bus_bandwidth(256 * _MIB, 20, "cuda") if on_gpu else speed)
    dist.destroy_process_group()


def bus_bandwidth(size: int, times: int, device: str) -> float:
    """Return the bus bandwidth in GB/s of `times` all-reduces of `size` bytes.

    It is the number of bytes that each rank sends in a ring all-reduce, over the seconds. Raises RuntimeError if a sum
    is wrong. Collective.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    values = torch.full((size // 4,), rank + 1.0, device=device)
    dist.all_reduce(values)
    expected = ranks * (ranks + 1) / 2
    if not bool((values == expected).all()):
        raise RuntimeError(f"an all-reduce gave {values.min()} to {values.max()} where every sum is {expected}")
    values.zero_()
    _synchronize(device)
    start = time.monotonic()
    for _ in range(times):
        dist.all_reduce(values)
    _synchronize(device)
    return 2 * (ranks - 1) / ranks * size * times / (time.monotonic() - start) / 1e9


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    else:
        dist.all_reduce(torch.zeros(1))


if __name__ == "__main__":
    main()
