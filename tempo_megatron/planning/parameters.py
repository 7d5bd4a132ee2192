"""Parameters that one rank holds, read off the conversion maps."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

from tempo_megatron.conversion import decoder
from tempo_megatron.conversion.mapping import OUTPUT_LAYER, BackboneSettings, ParameterMapping, Role

_EMBEDDING = "embedding.word_embeddings.weight"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Parameters:
    """`by_kind`: elements of each kind of parameter. `linear`: elements of the weights of linear layers but the output
    layer. `linear_shapes`: the distinct shapes of these weights."""

    by_kind: Counter[str]
    linear: int
    linear_shapes: frozenset[tuple[int, ...]]

    @property
    def total(self) -> int:
        return self.by_kind.total()


@lru_cache(maxsize=4096)
def parameters(settings: BackboneSettings, role: Role, tensor: int, pipeline: int, stage: int) -> Parameters:
    """What a rank of pipeline stage `stage` (from 0) of `pipeline` holds under tensor parallelism over `tensor`."""
    by_kind: Counter[str] = Counter()
    linear, shapes = 0, set()
    for entry in _entries(settings, role):
        if stage not in _stages(entry, settings, pipeline):
            continue
        kind, shape = _kind(entry, role), _shard(entry, tensor)
        count = entry.numel // (tensor if entry.shard_axis is not None else 1)
        by_kind[kind] += count
        if kind in ("attention", "MLP") and len(shape) == 2:
            linear += count
            shapes.add(shape)
    return Parameters(by_kind, linear, frozenset(shapes))


def _entries(settings: BackboneSettings, role: Role) -> list[ParameterMapping]:
    if role == "critic":
        return decoder.critic_mappings(replace(settings, tied=False), head="score", bias=False)
    return decoder.policy_mappings(settings)


def _stages(entry: ParameterMapping, settings: BackboneSettings, pipeline: int) -> set[int]:
    """Stages that hold this parameter: an embedding that serves as output layer is on the first and on the last."""
    layer = _LAYER.match(entry.megatron_name)
    if layer:
        return {int(layer[1]) // 2 * pipeline // settings.num_layers}
    if entry.megatron_name == _EMBEDDING:
        return {0, pipeline - 1} if entry.tied_output else {0}
    return {pipeline - 1}


def _kind(entry: ParameterMapping, role: Role) -> str:
    name = entry.megatron_name
    if name == _EMBEDDING:
        return "embedding"
    if name == OUTPUT_LAYER:
        return "value head" if role == "critic" else "output layer"
    if "norm." in name:
        return "norms"
    return "attention" if ".self_attention." in name else "MLP"


def _shard(entry: ParameterMapping, tensor: int) -> tuple[int, ...]:
    return tuple(size // tensor if axis == entry.shard_axis else size for axis, size in enumerate(entry.shape))
