"""Ranks that `srun` starts, one a task."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, MutableMapping

from tempo_megatron.config import ConfigError
from tempo_megatron.launch import torchrun

NODES = "TEMPO_NODES"
"""environment variable: names of a step's nodes, for tasks in an image, which has no `scontrol`"""
_FIRST_PORT, _PORTS = 20000, 10000
_PAUSES = (1.0, 5.0)
"""seconds between tries of `scontrol`"""


def join_step(environment: MutableMapping[str, str] = os.environ) -> None:
    """Describe this task's place in an `srun` step of several tasks as torchrun would: RANK, MASTER_ADDR and so on.

    Nothing is done outside such a step, or where torchrun started this. RANK and the like are left of something else
    otherwise: sbatch hands on its user's environment. The rendezvous is at MASTER_ADDR, else on the step's first node;
    its port follows from job and step, so that steps sharing a node do not meet. Raises ConfigError where
    `scontrol` cannot list the step's nodes.
    """
    if torchrun.started_this(environment) or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
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
    environment.setdefault("MASTER_PORT", str(_FIRST_PORT + step % _PORTS))


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this node, of a list such as `8(x3),4`: three nodes of 8, one of 4."""
    tasks: list[int] = []
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"]):
        tasks += [int(count)] * int(nodes or 1)
    return tasks[int(environment["SLURM_NODEID"])]


def step_nodes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of this step's nodes, by the batch script or by Slurm; empty outside a step. Raises as `join_step`."""
    if named := environment.get(NODES):
        return named.split()
    listed = environment.get("SLURM_STEP_NODELIST")
    return _expanded(listed) if listed else []


def _expanded(listed: str) -> list[str]:
    """The names in a list such as node[3-4]. `scontrol` is asked a few times."""
    command = ["scontrol", "show", "hostnames", listed]
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
