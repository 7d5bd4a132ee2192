"""What `tempo plan` predicts for a run on the machine that it has, as the run's report shows it."""

from __future__ import annotations

from typing import Any

from tempo_megatron.config import Config
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.planning import shapes
from tempo_megatron.planning.fit import layout_problems
from tempo_megatron.planning.layout import USABLE_GIB_PER_GB, Machine
from tempo_megatron.planning.memory import GIB
from tempo_megatron.planning.phases import PlannedRun, total_bytes
from tempo_megatron.planning.schedule import Schedule
from tempo_megatron.planning.workload import Workload


def predict(config: Config, *, gpus: int, gpu_gib: float, host_gib: float, questions: int) -> dict[str, Any] | None:
    """Return the planned seconds and peak memory of each phase of an iteration; None for what cannot be planned.

    `gpu_gib` is a GPU's memory as CUDA reports it, `host_gib` that of a node, `questions` the number of evaluated
    questions. Responses are assumed to have half of the longest length on average, as in `tempo plan`.
    """
    per_node = min(gpus, config.parallel.processes_per_node)
    machine = Machine(-(-gpus // per_node), per_node, gpu_gib / USABLE_GIB_PER_GB, host_gib)
    try:
        run = PlannedRun(shapes.model_shape(config.model.hf_path), config, machine)
    except ConversionError:
        return None
    if layout_problems(run):
        return None
    longest = config.generation.max_response_tokens
    schedule = Schedule(run, Workload.uniform(-(-longest // 2), longest, questions=questions))
    return {
        "response_tokens": schedule.workload.mean,
        "seconds": schedule.phase_seconds(),
        "device_gib": {phase: total_bytes(parts) / GIB for phase, parts in run.phase_memory().items()},
    }
