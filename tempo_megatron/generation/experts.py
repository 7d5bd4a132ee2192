"""The experts in the live model of a vLLM engine, by their Hugging Face names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(gate|up|down)_proj\.weight")
_PROJECTIONS = ("gate", "up", "down")
_HOLDER = "routed_experts"
"""The module of vLLM that holds the weights of all experts of a layer."""


def is_expert(name: str) -> bool:
    """Returns whether a Hugging Face tensor is a projection of one expert."""
    return _EXPERT.fullmatch(name) is not None


def holds_experts(path: str) -> bool:
    """Returns whether the module at this path of vLLM's model holds the experts of a layer."""
    return path.rpartition(".")[2] == _HOLDER


def expert_tensors(path: str, module: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the Hugging Face name and this rank's part of each projection that the module at `path` holds.

    vLLM stores gate and up projections of all experts as `w13_weight` [experts, 2 * width, hidden], and the down
    projections as `w2_weight` [experts, hidden, width]. Tensor parallelism splits the width.
    """
    experts = path.rpartition(".")[0]
    gates_and_ups = module.w13_weight.detach().unflatten(1, (2, -1)).flatten(0, 1).unbind()
    downs = module.w2_weight.detach().unbind()
    for expert, parts in enumerate(zip(gates_and_ups[::2], gates_and_ups[1::2], downs, strict=True)):
        for projection, part in zip(_PROJECTIONS, parts, strict=True):
            yield f"{experts}.{expert}.{projection}_proj.weight", part


class LiveExperts:
    """Writes the experts of a model, one projection after the other, and knows which layers are complete."""

    def __init__(self, model: Any, rank: int, ranks: int) -> None:
        self._model = model
        self._rank, self._ranks = rank, ranks
        self._missing: dict[str, dict[str, Tensor]] = {}
        """By the path of a layer's experts and the name of a projection: the live part that nothing was written to."""

    def load(self, name: str, sent: Tensor) -> None:
        """Copies this rank's part of a whole projection into the live parameter. Each projection comes once."""
        match = _EXPERT.fullmatch(name)
        assert match
        path, projection = match[1], match[2]
        if path not in self._missing:
            holder = f"{path}.{_HOLDER}"
            self._missing[path] = dict(expert_tensors(holder, self._model.get_submodule(holder)))
        if self._ranks > 1:
            sent = sent.chunk(self._ranks, 1 if projection == "down" else 0)[self._rank]
        self._missing[path].pop(name).copy_(sent)

    def complete_parameters(self) -> set[str]:
        """Returns the names of the live parameters of all layers of which every projection has come."""
        complete = [path for path, missing in self._missing.items() if not missing]
        return {f"{path}.{_HOLDER}.{parameter}" for path in complete for parameter in ("w13_weight", "w2_weight")}
