"""What is checked of the nodes before a run trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class BadNodes(StrEnum):
    """What a bad node does to the run."""

    fail = "fail"
    leave_out = "leave_out"
    report = "report"


@dataclass
class PreflightConfig:
    """The limits of `tempo doctor`; docs/doctor.md says what each check means and what to do."""

    enabled: bool = setting(
        True, "`tempo train` checks its nodes, without measuring bandwidth, before it builds models"
    )
    bad_nodes: BadNodes = setting(
        BadNodes.fail,
        "fail: nothing starts; leave_out: `tempo doctor --nodes-file` lists the others, if they are enough for the "
        "layout, and a start that includes a bad one fails; report: it is only said",
    )
    presence_seconds: float = setting(
        60.0,
        "seconds that ranks may come later than most of them (or, where most never do, than the first): imports from a "
        "cold file system and unpacking of images differ that much between healthy nodes. Twice this and "
        "time_limit_seconds must stay under srun's --wait for the doctor, 600 in slurm/common.sh",
        at_least=1,
    )
    time_limit_seconds: float = setting(60.0, "seconds for all checks, once the ranks have come", at_least=1)
    device_memory_used_gib: float = setting(
        2.0, "GiB of a GPU's memory that may be taken before the run starts", at_least=0
    )
    free_disk_gib: float = setting(
        1.0,
        "GiB that must be free where run_dir is, beside the room for checkpoint.keep + 2 checkpoints",
        at_least=0,
    )
    clock_skew_seconds: float = setting(5.0, "seconds that a node's clock may differ from the first node's", at_least=0)
    bandwidth_within_gb_per_second: float = setting(
        0.0,
        "least bus bandwidth of an all-reduce over a node's ranks, GB/s; 0: only reported",
        at_least=0,
    )
    bandwidth_across_gb_per_second: float = setting(
        0.0,
        "least bus bandwidth of an all-reduce over the ranks of two nodes, GB/s; 0: only reported",
        at_least=0,
    )
    bandwidth_share_of_median: float = setting(
        0.7,
        "least share of the nodes' median bandwidth, within nodes and across, where GPUs of at least three nodes are "
        "measured; 0: they are not compared",
        at_least=0,
    )
