"""Room for what a run holds and writes, by the figures of `tempo plan`: findings about the run, not about a node."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from tempo_megatron import planning
from tempo_megatron.config import Config
from tempo_megatron.preflight.facts import Facts, Finding, Verdict

_GIB = 2**30
_BESIDE_KEPT = 2
"""checkpoints beside `checkpoint.keep`: the best, and the one that is being written"""


CHECKS = ("memory", "free disk")
"""their names: what they find, other nodes would not mend"""


def memory(facts: Facts, config: Config, nodes: int) -> Iterator[Finding]:
    """Findings about GPUs and host memory, should the run have so many of these nodes. Nothing is known of a model that
    is not there, or without GPUs."""
    gpus = [gpu for of in facts.values() for gpu in of.gpus]
    ranks = config.parallel.processes_per_node
    if not gpus or not planning.checkpoint_gib(config, gpus=nodes * ranks):
        return
    sold_with = math.ceil(min(gpu.total_gib for gpu in gpus))  # nvidia-smi: 79.6 of 80, 140.4 of 141
    host = min(of.host_gib for of in facts.values())
    reasons = planning.check(config, nodes=nodes, gpus_per_node=ranks, gpu_memory_gib=sold_with, host_memory_gib=host)
    for reason in reasons:
        remedy = "`tempo plan` lists layouts that fit; more nodes, model.recompute, memory.*"
        yield Finding("memory", "", Verdict.bad, f"by `tempo plan`, {reason}", remedy)
    if not reasons:
        yield Finding("memory", "", Verdict.good, f"by `tempo plan` the run fits {sold_with} GB GPUs of {nodes} nodes")


def disk(directory: Path, config: Config, ranks: int) -> Finding:
    """The finding about free space in `directory`, where run_dir is or would be made."""
    free = shutil.disk_usage(directory).free / _GIB
    count = config.checkpoint.keep + _BESIDE_KEPT
    size = planning.checkpoint_gib(config, gpus=ranks)
    there = sum(path.lstat().st_size for path in Path(config.run_dir, "checkpoints").rglob("*")) / _GIB
    to_come = max(size, count * size - there)  # one at least is written beside those that are there
    found = f"{free:,.1f} GiB free in {directory}"
    if free < to_come + config.preflight.free_disk_gib:
        wanted = f"{count} checkpoints take {count * size:,.1f}, {there:,.1f} of them there"
        return Finding(
            "free disk",
            "",
            Verdict.bad,
            f"{found}; {wanted}, and preflight.free_disk_gib is {config.preflight.free_disk_gib:g}",
            "free some, choose another run_dir, or keep fewer (checkpoint.keep)",
        )
    return Finding("free disk", "", Verdict.good, f"{found}, {to_come:,.1f} of them for checkpoints")
