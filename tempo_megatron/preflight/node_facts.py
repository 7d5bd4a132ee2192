"""The facts that describe a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi describes it. Memory is in GiB."""

    name: str
    total_gib: float
    used_gib: float
    slowed_by: list[str] = field(default_factory=list)
    """The active reasons for lowered clocks: heat, power, hardware."""
    uncorrected_errors: int = 0
    """The uncorrectable ECC errors since the driver was loaded."""
    needs_reset: bool = False
    """Whether rows of its memory wait to be remapped."""
    processes: list[str] = field(default_factory=list)
    """The processes that hold memory, as far as this user may see them: "pid name"."""


@dataclass(frozen=True)
class NodeFacts:
    """The facts of one node. What cannot be read, such as GPUs or a driver, keeps its default."""

    versions: dict[str, str]
    """The versions by package or tool."""
    environment: dict[str, str]
    """The variables of `node_reader.VARIABLES` that are set."""
    cores: int
    """The number of logical cores of the node, whichever of them a rank may use."""
    host_gib: float
    host_free_gib: float
    ephemeral_ports: tuple[int, int]
    """The first and last port that the kernel gives to outgoing connections."""
    free_ports: float
    """The share of RENDEZVOUS_PORTS that can be bound, from 0 to 1."""
    gpus: list[Gpu] = field(default_factory=list)
    usable_gpus: int = 0
    """The number of GPUs that torch can use."""
    gpu_problem: str = ""
    """Why nvidia-smi gave no answer."""
    driver: str = ""
    driver_cuda: str = ""
    """The newest CUDA version that the driver supports, such as 13.0."""


def parse_node_facts(fields: Mapping[str, Any]) -> NodeFacts:
    """Return the facts that `dataclasses.asdict` and JSON have turned into these fields."""
    gpus = [Gpu(**gpu) for gpu in fields["gpus"]]
    first, last = fields["ephemeral_ports"]
    return NodeFacts(**{**fields, "gpus": gpus, "ephemeral_ports": (first, last)})


Facts = Mapping[str, NodeFacts]
"""The facts of all nodes, by node name."""
