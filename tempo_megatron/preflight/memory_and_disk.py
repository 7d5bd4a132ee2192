"""Checks that the run fits the memory of the nodes and the disk, by the figures of `tempo plan`."""

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
from tempo_megatron.preflight.findings import Finding, NodeVerdict
from tempo_megatron.preflight.node_facts import Facts

_GIB = 2**30
_CHECKPOINTS_BESIDE_KEPT = 2
"""The checkpoints beside `checkpoint.keep`: the best one, and the one that is being written."""

CHECKS = ("memory", "free disk")
"""The names of the checks of this module. Other nodes would not remedy what they find about the run as a whole."""


class _NodeSize(NamedTuple):
    gpu_gb: float
    """The nominal memory of its smallest GPU."""
    host_gib: float


def check_memory(facts: Facts, config: Config, nodes: int) -> Iterator[Finding]:
    """Yield findings about GPU and host memory of a run on `nodes` nodes, including those that did not come.

    The median node decides whether the run fits. If it does, a node with too little memory is bad by itself. Nothing is
    reported if the model's files or the GPUs are missing.
    """
    sizes = _node_sizes(facts)
    if not sizes:
        return
    median = _NodeSize(*map(median_high, zip(*sizes.values(), strict=True)))
    problems = _plan_problems(config, nodes, median)
    if problems is None:
        return
    for problem in problems:
        remedy = "`tempo plan` lists layouts that fit; more nodes, model.recompute, memory.*"
        yield Finding("memory", "", NodeVerdict.bad, f"by `tempo plan`, {problem}", remedy)
    if problems:
        return
    yield Finding(
        "memory", "", NodeVerdict.good, f"by `tempo plan` the run fits {median.gpu_gb} GB GPUs of {nodes} nodes"
    )
    for node, size in sizes.items():
        for problem in _plan_problems(config, nodes, size) or ():
            message = f"by `tempo plan`, {problem}; other nodes have {median.gpu_gb} GB GPUs, {median.host_gib:.0f} GiB"
            remedy = "see its DIMMs and GPUs; ask Slurm for all (--mem=0)"
            yield Finding("memory", node, NodeVerdict.bad, message, remedy)


def check_memory_of_remaining(facts: Facts, config: Config, nodes: int) -> Iterator[Finding]:
    """Yield findings about memory if the run has only `nodes` nodes, those that remain without the bad ones.

    Other nodes may remedy these findings.
    """
    sizes = _node_sizes(facts)
    if sizes:
        smallest = _NodeSize(*map(min, zip(*sizes.values(), strict=True)))
        for problem in _plan_problems(config, nodes, smallest) or ():
            message = f"without the bad nodes (left: {nodes}), by `tempo plan`, {problem}"
            remedy = "ask Slurm for a node to spare (--nodes)"
            yield Finding("memory of the rest", "", NodeVerdict.bad, message, remedy)


def _node_sizes(facts: Facts) -> Mapping[str, _NodeSize]:
    """Return the sizes of those nodes whose GPUs are known."""
    return {
        # nvidia-smi reports 79.6 of 80 GB and 140.4 of 141 GB
        node: _NodeSize(math.ceil(min(gpu.total_gib for gpu in node_facts.gpus)), node_facts.host_gib)
        for node, node_facts in facts.items()
        if node_facts.gpus
    }


def _plan_problems(config: Config, nodes: int, size: _NodeSize) -> list[str] | None:
    """Return why the run does not fit `nodes` nodes of this size.

    None if its model is not known or cannot be spread over them.
    """
    ranks = config.parallel.processes_per_node
    if not planning.checkpoint_gib(config, gpus=nodes * ranks):
        return None
    return planning.check_plan(
        config, nodes=nodes, gpus_per_node=ranks, gpu_memory_gb=size.gpu_gb, host_memory_gib=size.host_gib
    )


def check_disk(directory: Path, config: Config, ranks: int) -> Finding:
    """Return the finding about free space in `directory`, which is run_dir or its nearest existing parent."""
    free = shutil.disk_usage(directory).free / _GIB
    written = config.loop.iterations // config.checkpoint.every + 2  # the start's and the last one too
    kept_for_good = config.loop.iterations // config.checkpoint.keep_every if config.checkpoint.keep_every else 0
    count = min(config.checkpoint.keep + kept_for_good + _CHECKPOINTS_BESIDE_KEPT, written)
    size = planning.checkpoint_gib(config, gpus=ranks)
    present = _directory_bytes(Path(config.run_dir, "checkpoints")) / _GIB
    required = max(size, count * size - present)  # at least one checkpoint is written beside those present
    message = f"{free:,.1f} GiB free in {directory}"
    if free < required + config.preflight.free_disk_gib:
        checkpoints = f"{count} checkpoints take {count * size:,.1f}, {present:,.1f} of them there"
        return Finding(
            "free disk",
            "",
            NodeVerdict.bad,
            f"{message}; {checkpoints}, and preflight.free_disk_gib is {config.preflight.free_disk_gib:g}",
            "free some, choose another run_dir, or keep fewer (checkpoint.keep, checkpoint.keep_every)",
        )
    return Finding("free disk", "", NodeVerdict.good, f"{message}, {required:,.1f} of them for checkpoints")


def _directory_bytes(directory: Path) -> int:
    """Return the bytes of the files in `directory`, without those that vanish meanwhile.

    Another run may work in the directory and remove its old checkpoints. `run_dir.lock` detects that run later.
    """
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_size
    return total
