"""What a node says of itself, and what is found in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MASTER_PORTS = range(20000, 30000)
"""ports that `launch/slurm.py` takes a step's rendezvous from"""


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi describes it; memory in GiB."""

    name: str
    total_gib: float
    used_gib: float
    slowed_by: list[str] = field(default_factory=list)
    """reasons for lowered clocks that are active: heat, power, hardware"""
    uncorrected_errors: int = 0
    """uncorrectable ECC errors since the driver was loaded"""
    needs_reset: bool = False
    """rows of its memory wait to be remapped"""
    processes: list[str] = field(default_factory=list)
    """who holds memory, as far as this user may know: "pid name" """


@dataclass(frozen=True)
class NodeFacts:
    """Facts of one node. Only what can be read is there: no GPU, no driver."""

    versions: dict[str, str]
    """package or tool: version"""
    environment: dict[str, str]
    """those variables among `gather.VARIABLES` that are set"""
    host_gib: float
    host_free_gib: float
    ephemeral_ports: tuple[int, int]
    """first and last port that the kernel gives to outgoing connections"""
    free_ports: float
    """share of MASTER_PORTS that can be taken, from 0 to 1"""
    gpus: list[Gpu] = field(default_factory=list)
    usable_gpus: int = 0
    """GPUs that torch can use"""
    gpu_problem: str = ""
    """why nvidia-smi said nothing"""
    driver: str = ""
    driver_cuda: str = ""
    """newest CUDA that the driver knows, such as 13.0"""


def node_facts(read: Mapping[str, Any]) -> NodeFacts:
    """The facts of a node that `dataclasses.asdict` and JSON have been applied to."""
    gpus = [Gpu(**gpu) for gpu in read["gpus"]]
    first, last = read["ephemeral_ports"]
    return NodeFacts(**{**read, "gpus": gpus, "ephemeral_ports": (first, last)})


Facts = Mapping[str, NodeFacts]
"""node: its facts"""


class NodeVerdict(StrEnum):
    good = "good"
    warning = "warning"
    """training can start, slower or at a risk"""
    bad = "bad"


@dataclass(frozen=True)
class Finding:
    """What one check says of one node, or of the run as a whole where `node` is empty."""

    check: str
    node: str
    verdict: NodeVerdict
    found: str
    remedy: str = ""


def usual(values: Mapping[str, str]) -> str:
    """The most frequent value, the first node's among equals; empty where there is no node."""
    return Counter(values.values()).most_common(1)[0][0] if values else ""
