"""Plans a run before it is queued: memory of each phase, time, and layouts that fit. See `docs/planning.md`.

Planning needs no GPU and no process group: it computes from model shapes and settings.

- `command`, `report`: `tempo plan` and what it prints
- `layout`: the cluster, and how models are spread over it
- `shapes`, `parameters`: shapes of known models, and the parameters of one rank
- `activations`, `memory`: memory of one model in training
- `generator`: memory of vLLM, and the size of its KV cache
- `phases`, `host`: memory of a GPU in each phase, and memory of a node
- `fit`, `layout_search`: whether a run fits, and which layout to choose
- `flops`, `rates`, `model_time`: seconds of one model's passes and optimizer steps
- `workload`, `rollout_counts`, `schedule`: seconds of each phase and of the run
- `prediction`: seconds and memory that a run's report shows beside the measured ones
"""

from __future__ import annotations

from tempo_megatron.config import Config
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.planning import host, shapes
from tempo_megatron.planning.fit import layout_problems, plan_problems
from tempo_megatron.planning.layout import Machine
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun

HOST_GIB = 1536.0
"""The default host memory of a node in GiB."""


def check_plan(
    config: Config,
    *,
    nodes: int,
    gpus_per_node: int = 8,
    gpu_memory_gb: float = 80.0,
    host_memory_gib: float = HOST_GIB,
) -> list[str]:
    """Return why this run does not fit these nodes, one line per reason; empty if it fits.

    `gpu_memory_gb` is the nominal memory of a GPU. A model whose files are missing is recognized by the name of its
    directory.
    """
    try:
        settings = shapes.model_shape(config.model.hf_path)
    except ConversionError as error:
        return [f"model.hf_path: {line}" for line in str(error).splitlines()]
    return plan_problems(PlannedRun(settings, config, Machine(nodes, gpus_per_node, gpu_memory_gb, host_memory_gib)))


def checkpoint_gib(config: Config, *, gpus: int) -> float:
    """Return the GiB of a checkpoint of this run; 0 if its model is not known, or does not divide over `gpus`."""
    try:
        run = PlannedRun(shapes.model_shape(config.model.hf_path), config, Machine(1, gpus, 80.0, HOST_GIB))
    except ConversionError:
        return 0.0
    return 0.0 if layout_problems(run) else host.checkpoint_bytes(run) / GIB
