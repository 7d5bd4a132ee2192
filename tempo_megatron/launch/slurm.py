"""Joins the ranks that `srun` starts, one per task."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, MutableMapping

from tempo_megatron.config import ConfigError
from tempo_megatron.launch import torchrun
from tempo_megatron.utils.ports import RENDEZVOUS_PORTS

NODES = "TEMPO_NODES"
"""The environment variable with the names of a step's nodes, for tasks in an image, which has no `scontrol`."""
_PAUSES = (1.0, 5.0)
"""The seconds between tries of `scontrol`."""


def join_step(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, MASTER_ADDR and so on for this task of an `srun` step, as torchrun would.

    Outside a step of several tasks, or under torchrun, nothing changes. Otherwise an existing RANK is a leftover of
    another launcher, because sbatch passes on its user's environment, and it is overwritten. The rendezvous is at
    MASTER_ADDR, otherwise on the step's first node. Its port follows from job and step, so that steps on one node do
    not meet. Raises ConfigError if `scontrol` cannot list the step's nodes.
    """
    if torchrun.started_this_rank(environment) or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    if "MASTER_ADDR" not in environment:
        environment["MASTER_ADDR"] = step_nodes(environment)[0]
    step = int(environment["SLURM_JOB_ID"]) * 7 + int(environment["SLURM_STEP_ID"])
    environment.update(
        RANK=environment["SLURM_PROCID"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(_tasks_here(environment)),
        WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
    )
    environment.setdefault("MASTER_PORT", str(RENDEZVOUS_PORTS[step % len(RENDEZVOUS_PORTS)]))


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Return the number of this step's tasks on this node. Slurm's `8(x3),4` means three nodes of 8 and one of 4."""
    tasks: list[int] = []
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"]):
        tasks += [int(count)] * int(nodes or 1)
    return tasks[int(environment["SLURM_NODEID"])]


def step_nodes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of this step's nodes, from the batch script or from Slurm; empty outside a step.

    Raises ConfigError if `scontrol` cannot list them.
    """
    if names := environment.get(NODES):
        return names.split()
    node_list = environment.get("SLURM_STEP_NODELIST")
    return _expand(node_list) if node_list else []


def _expand(node_list: str) -> list[str]:
    """Return the names in a list such as node[3-4]. `scontrol` is tried a few times."""
    command = ["scontrol", "show", "hostnames", node_list]
    problem = ""
    for pause in (*_PAUSES, 0.0):
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
        except FileNotFoundError:
            problem = "there is no scontrol here"
            break
        except subprocess.SubprocessError as error:
            problem = getattr(error, "stderr", None) or str(error)
            time.sleep(pause)
    raise ConfigError(f"{NODES}: unknown, as {problem.strip()}: give the names of the step's nodes, or MASTER_ADDR")
