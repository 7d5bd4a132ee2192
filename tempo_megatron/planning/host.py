"""Host memory of a node, and the size of a checkpoint."""

from __future__ import annotations

from tempo_megatron.planning.memory import GIB, Parts
from tempo_megatron.planning.phases import Run, total

_PROCESS = int(3.2 * GIB)
"""resident set of a rank without what rests in it: measured"""
_SHARE_OF_HOST = 0.8
"""of a node's memory, what may be pinned where memory.host_gib is 0 (`megatron/offload.py`)"""


def pinned(run: Run) -> Parts:
    """Bytes that rest in a rank's pinned memory, by model and kind."""
    return {
        f"{name}'s {kind}": size
        for name in run.models
        for kind, size in run.state(name).items()
        if kind != "gradients" and run.moves(kind)
    }


def pinned_limit(run: Run) -> float:
    """Bytes that a rank may pin."""
    ranks = run.machine.gpus_per_node
    return (run.config.memory.host_gib or _SHARE_OF_HOST * run.machine.host_gib / ranks) * GIB


def node(run: Run) -> Parts:
    """Bytes of a node's memory, on the node that takes most."""
    ranks = run.machine.gpus_per_node
    return {"processes": ranks * _PROCESS, "pinned": ranks * total(pinned(run)), "a save's copies": _saving(run)}


def _saving(run: Run) -> int:
    """The optimizer's state of a model gathered over its data-parallel ranks by the first of them, and its weights. One
    model is saved after the other."""
    gathering = min(run.machine.gpus_per_node, run.layout.tensor * run.layout.pipeline)
    most = 0
    for name in run.models:
        state = run.state(name)
        whole = state["weights"] + state.get("optimizer", 0) * run.layout.optimizer_ranks
        most = max(most, gathering * whole)
    return most


def checkpoint(run: Run) -> int:
    """Bytes of a checkpoint: weights and optimizer state of policy and critic."""
    layout = run.layout
    size = 0
    for model in [run.models[name] for name in ("policy", "critic") if name in run.models]:
        for stage in range(layout.pipeline):
            state = model.state(stage)
            size += layout.tensor * (state["weights"] + state["optimizer"] * layout.optimizer_ranks)
    return size
