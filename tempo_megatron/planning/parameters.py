"""Parameters of one rank, from the conversion maps."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

from tempo_megatron.conversion import decoder
from tempo_megatron.conversion.mapping import OUTPUT_LAYER, BackboneSettings, ParameterMapping, Role

EXPERTS = "experts"
"""The kind of parameter that expert parallelism divides."""
_EMBEDDING = "embedding.word_embeddings.weight"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class RankParameters:
    """The number of parameters of one rank."""

    by_kind: Counter[str]
    """The number of elements of each kind of parameter."""
    linear: int
    """The number of elements in weights of linear layers, without experts and the output layer."""
    linear_shapes: frozenset[tuple[int, ...]]
    """The distinct shapes of these weights, and of an expert's."""

    @property
    def total(self) -> int:
        return self.by_kind.total()


@lru_cache(maxsize=4096)
def rank_parameters(
    settings: BackboneSettings, role: Role, tensor: int, pipeline: int, stage: int, expert: int = 1, chunks: int = 1
) -> RankParameters:
    """Return the parameters of a rank of pipeline stage `stage` (from 0).

    `tensor`, `pipeline` and `expert` are the parallel sizes, and each stage has `chunks` chunks. Tensor parallelism
    splits no expert.
    """
    by_kind: Counter[str] = Counter()
    linear, shapes = 0, set()
    layers = frozenset(itertools.chain(*settings.stage_chunks(pipeline, chunks, role)[stage]))
    for entry in _entries(settings, role):
        if not _is_on_stage(entry, layers, stage, pipeline):
            continue
        kind, shape = _kind(entry, role), _shard_shape(entry, tensor)
        count = entry.numel // (tensor if entry.shard_axis is not None else 1)
        by_kind[kind] += count
        if kind == EXPERTS:
            shapes.add(shape)
        if kind in ("attention", "MLP") and len(shape) == 2:
            linear += count
            shapes.add(shape)
    by_kind[EXPERTS] //= expert
    return RankParameters(+by_kind, linear, frozenset(shapes))


def _entries(settings: BackboneSettings, role: Role) -> list[ParameterMapping]:
    if role == "critic":
        return decoder.critic_mappings(replace(settings, tied=False), head="score", bias=False)
    return decoder.policy_mappings(settings)


def _is_on_stage(entry: ParameterMapping, layers: frozenset[int], stage: int, pipeline: int) -> bool:
    """Return whether a stage with these layers holds the parameter. A tied embedding is on both ends."""
    layer = _LAYER.match(entry.megatron_name)
    if layer:
        return int(layer[1]) // 2 in layers
    is_last = stage == pipeline - 1
    if entry.megatron_name == _EMBEDDING:
        return stage == 0 or (is_last and entry.tied_output)
    return is_last


def _kind(entry: ParameterMapping, role: Role) -> str:
    name = entry.megatron_name
    if name == _EMBEDDING:
        return "embedding"
    if name == OUTPUT_LAYER:
        return "value head" if role == "critic" else "output layer"
    if "norm." in name:
        return "norms"
    if entry.slot:
        return EXPERTS
    if ".router." in name:
        return "routers"
    return "attention" if ".self_attention." in name else "MLP"


def _shard_shape(entry: ParameterMapping, tensor: int) -> tuple[int, ...]:
    return tuple(size // tensor if axis == entry.shard_axis else size for axis, size in enumerate(entry.shape))
