"""The experts in the live model of a vLLM engine, by their Hugging Face names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
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
    for expert, (gate_and_up, down) in enumerate(zip(module.w13_weight, module.w2_weight, strict=True)):
        for projection, part in zip(_PROJECTIONS, (*gate_and_up.chunk(2), down), strict=True):
            yield f"{experts}.{expert}.{projection}_proj.weight", part.detach()


class LiveExperts:
    """Writes the experts of a model, one projection after the other, and knows which layers are complete."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers: dict[str, Any] = {}
        self._loaded: Counter[str] = Counter()

    def load(self, name: str, sent: Tensor) -> None:
        """Copies this rank's part of a whole projection into the live parameter."""
        match = _EXPERT.fullmatch(name)
        assert match
        path, expert, projection = match[1], int(match[2]), match[3]
        if path not in self._layers:
            self._layers[path] = self._model.get_submodule(f"{path}.{_HOLDER}")
        layer = self._layers[path]
        rank, ranks = layer.moe_config.tp_rank, layer.moe_config.tp_size
        if projection == "down":
            layer.w2_weight.data[expert].copy_(sent.chunk(ranks, 1)[rank])
        else:
            half = layer.w13_weight.data[expert].chunk(2)[_PROJECTIONS.index(projection)]
            half.copy_(sent.chunk(ranks)[rank])
        self._loaded[path] += 1

    def complete_parameters(self) -> set[str]:
        """Returns the names of the live parameters of all layers of which every projection has come."""
        complete = set()
        for path, layer in self._layers.items():
            if self._loaded[path] == len(_PROJECTIONS) * len(layer.w13_weight):
                complete |= {f"{path}.{_HOLDER}.{parameter}" for parameter in ("w13_weight", "w2_weight")}
        return complete
