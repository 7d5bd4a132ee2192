"""Room for what a run holds and writes, by the figures of `tempo plan`: findings about the run, or about a node that
has less than most."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median_high
from typing import NamedTuple

from tempo_megatron import planning
from tempo_megatron.config import Config
from tempo_megatron.preflight.facts import Facts, Finding, NodeVerdict

_GIB = 2**30
_BESIDE_KEPT = 2
"""checkpoints beside `checkpoint.keep`: the best, and the one that is being written"""


CHECKS = ("memory", "free disk")
"""their names: what they find of the run, other nodes would not mend"""


class _Machine(NamedTuple):
    gpu_gb: float
    """what its smallest GPU is sold with"""
    host_gib: float


def memory(facts: Facts, config: Config, nodes: int) -> Iterator[Finding]:
    """Findings about GPUs and host memory of a run on so many nodes, those that did not come among them. What is usual
    for a node decides for the run; where that fits and a node has too little, the node is bad. Nothing is known of a
    model that is not there, or without GPUs."""
    machines = _machines(facts)
    if not machines:
        return
    usual = _Machine(*map(median_high, zip(*machines.values(), strict=True)))
    reasons = _reasons(config, nodes, usual)
    if reasons is None:
        return
    for reason in reasons:
        remedy = "`tempo plan` lists layouts that fit; more nodes, model.recompute, memory.*"
        yield Finding("memory", "", NodeVerdict.bad, f"by `tempo plan`, {reason}", remedy)
    if reasons:
        return
    yield Finding(
        "memory", "", NodeVerdict.good, f"by `tempo plan` the run fits {usual.gpu_gb} GB GPUs of {nodes} nodes"
    )
    for node, machine in machines.items():
        for reason in _reasons(config, nodes, machine) or ():
            found = f"by `tempo plan`, {reason}; other nodes have {usual.gpu_gb} GB GPUs, {usual.host_gib:.0f} GiB"
            yield Finding("memory", node, NodeVerdict.bad, found, "see its DIMMs and GPUs; ask Slurm for all (--mem=0)")


def memory_of_rest(facts: Facts, config: Config, nodes: int) -> Iterator[Finding]:
    """What is too little if the run has these nodes alone, the rest of those that it asked for: others may do."""
    machines = _machines(facts)
    if machines:
        least = _Machine(*map(min, zip(*machines.values(), strict=True)))
        for reason in _reasons(config, nodes, least) or ():
            found = f"without the bad nodes (left: {nodes}), by `tempo plan`, {reason}"
            yield Finding("memory of the rest", "", NodeVerdict.bad, found, "ask Slurm for a node to spare (--nodes)")


def _machines(facts: Facts) -> Mapping[str, _Machine]:
    """The nodes whose GPUs are known."""
    return {
        # nvidia-smi: 79.6 of 80, 140.4 of 141
        node: _Machine(math.ceil(min(gpu.total_gib for gpu in of.gpus)), of.host_gib)
        for node, of in facts.items()
        if of.gpus
    }


def _reasons(config: Config, nodes: int, machine: _Machine) -> list[str] | None:
    """Why the run does not fit so many of these; None where its model is not known or cannot be spread over them."""
    ranks = config.parallel.processes_per_node
    if not planning.checkpoint_gib(config, gpus=nodes * ranks):
        return None
    gpu, host = machine
    return planning.check_plan(config, nodes=nodes, gpus_per_node=ranks, gpu_memory_gb=gpu, host_memory_gib=host)


def disk(directory: Path, config: Config, ranks: int) -> Finding:
    """The finding about free space in `directory`, where run_dir is or would be made."""
    free = shutil.disk_usage(directory).free / _GIB
    made = config.loop.iterations // config.checkpoint.every + 2  # the start's and the last one too
    for_good = config.loop.iterations // config.checkpoint.keep_every if config.checkpoint.keep_every else 0
    count = min(config.checkpoint.keep + for_good + _BESIDE_KEPT, made)
    size = planning.checkpoint_gib(config, gpus=ranks)
    there = _taken(Path(config.run_dir, "checkpoints")) / _GIB
    to_come = max(size, count * size - there)  # one at least is written beside those that are there
    found = f"{free:,.1f} GiB free in {directory}"
    if free < to_come + config.preflight.free_disk_gib:
        wanted = f"{count} checkpoints take {count * size:,.1f}, {there:,.1f} of them there"
        return Finding(
            "free disk",
            "",
            NodeVerdict.bad,
            f"{found}; {wanted}, and preflight.free_disk_gib is {config.preflight.free_disk_gib:g}",
            "free some, choose another run_dir, or keep fewer (checkpoint.keep, checkpoint.keep_every)",
        )
    return Finding("free disk", "", NodeVerdict.good, f"{found}, {to_come:,.1f} of them for checkpoints")


def _taken(directory: Path) -> int:
    """Bytes of the files in a directory, less those that vanish meanwhile: another run may work there, and remove its
    old checkpoints. That it does is found later, by `occupancy`."""
    taken = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                taken += Path(parent, name).lstat().st_size
    return taken
