"""Whether a run fits its machine, and if not what is too much."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.planning import host
from tempo_megatron.planning.layout import divisible, shareable, windows
from tempo_megatron.planning.memory import GIB, Parts
from tempo_megatron.planning.phases import PlannedRun, total

HEADROOM = 0.05
"""of a GPU's memory that a plan leaves free: what the estimate may be wrong by, and fragmentation"""


def plan_problems(run: PlannedRun) -> list[str]:
    """Why the run cannot start or would run out of memory, one line a reason; empty when it fits."""
    return indivisible(run) or too_much(run)


def indivisible(run: PlannedRun) -> list[str]:
    """Why the model cannot be spread over these GPUs; memory and time mean nothing then."""
    return [*divisible(run.config.parallel, run.settings), *windows(run.config.parallel, run.settings), *_spread(run)]


def too_much(run: PlannedRun) -> list[str]:
    """What takes more memory than there is."""
    return [*_device(run), *_generator(run), *_host(run)]


def _spread(run: PlannedRun) -> Iterator[str]:
    parallel, gpus = run.config.parallel, run.machine.gpus
    size = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    if gpus % size:
        yield f"parallel: {gpus} GPUs cannot be cut into TP x PP x CP = {size}"
    replica = run.config.generation.tensor_parallel_size  # one that is not set is that of parallel, which is judged
    if replica and gpus % replica:
        yield f"generation.tensor_parallel_size: {replica} does not divide {gpus} GPUs"
    if run.layout.tensor > run.machine.gpus_per_node:
        yield f"parallel.tensor_model_parallel_size: {run.layout.tensor} is more than the GPUs of a node"
    yield from shareable(replica, run.settings)


def _device(run: PlannedRun) -> Iterator[str]:
    limit = run.machine.usable_gib * (1 - HEADROOM)
    for phase, parts in run.phases().items():
        if total(parts) > limit * GIB:
            yield (
                f"{phase}: {total(parts) / GIB:.1f} GiB of a GPU's {run.machine.usable_gib:.1f} "
                f"(of which a plan leaves {HEADROOM:.0%} free): {listed(parts)}"
            )


def _generator(run: PlannedRun) -> Iterator[str]:
    longest = run.config.data.max_prompt_tokens + run.config.generation.max_response_tokens
    one = run.engine.sequence(longest)
    if run.engine.cache < one:
        yield (
            f"generate: {run.engine.cache / GIB:.1f} GiB are left for the KV cache of a GPU, a sequence of {longest} "
            f"tokens takes {one / GIB:.1f}: raise generation.gpu_memory_utilization or generation.tensor_parallel_size"
        )


def _host(run: PlannedRun) -> Iterator[str]:
    taken = host.budgeted(run)
    if total(taken) > host.budget(run):
        yield (
            f"host: a rank takes {total(taken) / GIB:.1f} GiB for what rests and may take {host.budget(run) / GIB:.1f} "
            f"(memory.host_gib): {listed(taken)}"
        )
    node = host.node(run)
    if total(node) > run.machine.host_gib * GIB:
        yield f"host: a node takes {total(node) / GIB:.0f} GiB of {run.machine.host_gib:.0f}: {listed(node)}"


def listed(parts: Parts) -> str:
    """The parts in GiB, the largest first, without what is next to nothing."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in ordered if size >= GIB / 20)
