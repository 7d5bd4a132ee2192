"""Host memory of a node, and the size of a checkpoint."""

from __future__ import annotations

from tempo_megatron.planning.memory import GIB, Parts
from tempo_megatron.planning.phases import PlannedRun, total

_PROCESS = int(3.2 * GIB)
"""resident set of a rank without what rests in it: measured"""


def pinned(run: PlannedRun) -> Parts:
    """Bytes that rest in a rank's pinned memory, by model and kind."""
    return {
        f"{name}'s {kind}": size
        for name in run.models
        for kind, size in run.state(name).items()
        if kind != "gradients" and run.moves(kind)
    }


def budgeted(run: PlannedRun) -> Parts:
    """Bytes that count against a rank's budget: what rests, and its part of an asynchronous save's copies."""
    copies = _copies(run) // run.machine.gpus_per_node
    return pinned(run) | ({"an asynchronous save's copies": copies} if copies else {})


def budget(run: PlannedRun) -> float:
    """Bytes of host memory that a rank may take for those."""
    return run.config.memory.budget_gib(run.machine.host_gib, run.machine.gpus_per_node) * GIB


def node(run: PlannedRun) -> Parts:
    """Bytes of a node's memory, on the node that takes most."""
    ranks = run.machine.gpus_per_node
    parts = {
        "processes": ranks * _PROCESS,
        "pinned": ranks * total(pinned(run)),
        "a model as it is saved": _saving(run),
    }
    return parts | {"an asynchronous save's copies": _copies(run)}


def _saving(run: PlannedRun) -> int:
    """One model is saved after the other."""
    return max(_gathered(run).values())


def _copies(run: PlannedRun) -> int:
    """What an asynchronous save holds of all models until it is written, beside the one that is being gathered."""
    return sum(_gathered(run).values()) if run.config.checkpoint.asynchronous else 0


def _gathered(run: PlannedRun) -> Parts:
    """Bytes of a node for each model that is saved: its weights, and the optimizer's state gathered over its
    data-parallel ranks by the first of them."""
    gathering = min(run.machine.gpus_per_node, run.layout.tensor * run.layout.pipeline)
    states = {name: run.state(name) for name in run.models if name != "reference"}
    return {
        name: gathering * (state["weights"] + state.get("optimizer", 0) * run.layout.optimizer_ranks)
        for name, state in states.items()
    }


def checkpoint(run: PlannedRun) -> int:
    """Bytes of a checkpoint: weights of policy and critic, and the optimizer state of what iterations teach."""
    layout, learns = run.layout, {"policy": True, "critic": run.config.critic.training.learns}
    size = 0
    for name in [name for name in learns if name in run.models]:
        for stage in range(layout.pipeline):
            state = run.models[name].state(stage)
            size += layout.tensor * (state["weights"] + learns[name] * state["optimizer"] * layout.optimizer_ranks)
    return size
