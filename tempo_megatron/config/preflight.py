"""Settings of the checks of nodes before training."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class BadNodes(StrEnum):
    """What happens when a node is bad."""

    fail = "fail"
    leave_out = "leave_out"
    report = "report"


@dataclass
class PreflightConfig:
    """The limits of `tempo doctor`. docs/doctor.md explains each check and its remedy."""

    enabled: bool = setting(
        True, "let `tempo train` check its nodes before it builds models, without measuring bandwidth"
    )
    bad_nodes: BadNodes = setting(
        BadNodes.fail,
        "what a bad node causes: fail (nothing starts), leave_out (`tempo doctor --nodes-file` lists the other nodes "
        "if they are enough for the layout; training on a bad one fails), report (a message alone)",
    )
    presence_seconds: float = setting(
        60.0,
        "seconds that a rank may arrive after most ranks (or after the first, where most never arrive). Healthy nodes "
        "differ this much in imports from a cold file system and in unpacking images. Twice this plus "
        "time_limit_seconds must be less than srun's --wait for the doctor, 600 in slurm/common.sh",
        at_least=1,
    )
    time_limit_seconds: float = setting(
        60.0, "seconds that all checks may take once the ranks have arrived", at_least=1
    )
    device_memory_used_gib: float = setting(
        2.0, "GiB of a GPU's memory that other processes may use before the run starts", at_least=0
    )
    free_disk_gib: float = setting(
        1.0,
        "GiB that must be free on the disk of run_dir, beside the room for checkpoint.keep + 2 checkpoints",
        at_least=0,
    )
    clock_skew_seconds: float = setting(5.0, "seconds that a node's clock may differ from the first node's", at_least=0)
    bandwidth_within_gb_per_second: float = setting(
        0.0,
        "lowest good bus bandwidth of an all-reduce within a node, in GB/s; 0: it is only reported",
        at_least=0,
    )
    bandwidth_across_gb_per_second: float = setting(
        0.0,
        "lowest good bus bandwidth of an all-reduce over two nodes, in GB/s; 0: it is only reported",
        at_least=0,
    )
    bandwidth_share_of_median: float = setting(
        0.7,
        "lowest good share of the nodes' median bandwidth, within and across nodes; needs GPUs of at least three "
        "nodes; 0: nodes are not compared",
        at_least=0,
    )
