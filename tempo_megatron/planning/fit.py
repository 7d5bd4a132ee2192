"""Checks whether a run fits its machine."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.planning import host
from tempo_megatron.planning.layout import (
    chunk_problems,
    divisibility_problems,
    edge_problems,
    expert_group_problems,
    expert_setting_problems,
    replica_problems,
    window_problems,
)
from tempo_megatron.planning.memory import GIB, Parts
from tempo_megatron.planning.phases import PlannedRun, total_bytes

HEADROOM = 0.05
"""The share of a GPU's memory that a plan leaves free for errors of the estimate and for fragmentation."""


def plan_problems(run: PlannedRun) -> list[str]:
    """Return why the run cannot start or would run out of memory, one line per reason; empty if it fits."""
    return layout_problems(run) or memory_problems(run)


def layout_problems(run: PlannedRun) -> list[str]:
    """Return why the model cannot be spread over these GPUs. If it cannot, memory and time have no meaning."""
    return [
        *expert_setting_problems(run.config, run.settings),
        *divisibility_problems(run.config.parallel, run.settings),
        *window_problems(run.config.parallel, run.settings),
        *chunk_problems(run.config.parallel),
        *edge_problems(run.config, run.settings),
        *_gpu_count_problems(run),
    ]


def memory_problems(run: PlannedRun) -> list[str]:
    """Return what takes more memory than the machine has, one line per reason."""
    return [*_device_problems(run), *_generator_problems(run), *_host_problems(run)]


def _gpu_count_problems(run: PlannedRun) -> Iterator[str]:
    parallel, gpus = run.config.parallel, run.machine.gpus
    size = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    if gpus % size:
        yield f"parallel: {gpus} GPUs cannot be cut into TP x PP x CP = {size}"
    else:
        yield from expert_group_problems(parallel, gpus)
    replica = run.config.generation.tensor_parallel_size  # 0: the size of parallel, checked above
    if replica and gpus % replica:
        yield f"generation.tensor_parallel_size: {replica} does not divide {gpus} GPUs"
    if run.layout.tensor > run.machine.gpus_per_node:
        yield f"parallel.tensor_model_parallel_size: {run.layout.tensor} is more than the GPUs of a node"
    yield from replica_problems(run.config, run.settings)


def _device_problems(run: PlannedRun) -> Iterator[str]:
    limit = run.machine.usable_gib * (1 - HEADROOM)
    for phase, parts in run.phase_memory().items():
        if total_bytes(parts) > limit * GIB:
            yield (
                f"{phase}: {total_bytes(parts) / GIB:.1f} GiB of a GPU's {run.machine.usable_gib:.1f} "
                f"(of which a plan leaves {HEADROOM:.0%} free): {format_parts(parts)}"
            )


def _generator_problems(run: PlannedRun) -> Iterator[str]:
    longest = run.config.data.max_prompt_tokens + run.config.generation.max_response_tokens
    cache, sequence = run.engine.kv_cache_bytes, run.engine.sequence_cache_bytes(longest)
    if cache < sequence:
        yield (
            f"generate: {cache / GIB:.1f} GiB are left for the KV cache of a GPU, a sequence of {longest} "
            f"tokens takes {sequence / GIB:.1f}: raise generation.gpu_memory_utilization or "
            "generation.tensor_parallel_size"
        )


def _host_problems(run: PlannedRun) -> Iterator[str]:
    required, budget = host.budgeted_memory(run), host.budget_bytes(run)
    if total_bytes(required) > budget:
        yield (
            f"host: a rank takes {total_bytes(required) / GIB:.1f} GiB for offloaded state and may take "
            f"{budget / GIB:.1f} (memory.host_gib): {format_parts(required)}"
        )
    parts = host.node_memory(run)
    if total_bytes(parts) > run.machine.host_gib * GIB:
        yield (
            f"host: a node takes {total_bytes(parts) / GIB:.0f} GiB of {run.machine.host_gib:.0f}: "
            f"{format_parts(parts)}"
        )


def format_parts(parts: Parts) -> str:
    """Return the parts in GiB as text, the largest first, without parts under 0.05 GiB."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in ordered if size >= GIB / 20)
