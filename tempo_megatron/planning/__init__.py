"""What a recipe takes of a cluster before anything is queued: memory in each phase, time, and which layout to choose.

No process group, no GPU: shapes and settings in, figures out.
"""

from __future__ import annotations

from tempo_megatron.config import Config
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.planning import host, shapes
from tempo_megatron.planning.fit import indivisible, plan_problems
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun

HOST_GIB = 1536.0
"""host memory of a node where nothing else is said"""


def check_plan(
    config: Config,
    *,
    nodes: int,
    gpus_per_node: int = 8,
    gpu_memory_gb: float = 80.0,
    host_memory_gib: float = HOST_GIB,
) -> list[str]:
    """Why this run cannot work on so many nodes, one line a reason; empty when it fits.

    `gpu_memory_gb`: that a GPU is sold with. A model that is not there yet is known by the name of its directory.
    """
    try:
        settings = shapes.of_model(config.model.hf_path)
    except ConversionError as error:
        return [f"model.hf_path: {line}" for line in str(error).splitlines()]
    return plan_problems(PlannedRun(settings, config, Machine(nodes, gpus_per_node, gpu_memory_gb, host_memory_gib)))


def checkpoint_gib(config: Config, *, gpus: int) -> float:
    """GiB of a checkpoint of this run; 0 where its model is not known, or cannot be spread over so many GPUs."""
    try:
        run = PlannedRun(shapes.of_model(config.model.hf_path), config, Machine(1, gpus, 80.0, HOST_GIB))
    except ConversionError:
        return 0.0
    return 0.0 if indivisible(run) else host.checkpoint(run) / GIB
