"""Hugging Face tensors into a Megatron model of any layout, and out of it again, through the conversion maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from checkpoints_convert.mapping import OUTPUT_BIAS, OUTPUT_LAYER, Entry
from tempo_megatron.megatron.layers import CANONICAL_NAMES
from tempo_megatron.megatron.topology import Topology

BUCKET_BYTES = 256 * 2**20
"""of one collective of `export`; a larger tensor travels alone"""


def canonical_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters by the names the maps use: global layer numbers, norms unfused."""
    layers = model.get_submodule("decoder.layers")
    named = {}
    for name, parameter in model.named_parameters():
        match = re.match(r"decoder\.layers\.(\d+)\.(.*)", name)
        if match:
            number = int(layers[int(match[1])].layer_number) - 1  # type: ignore[index]
            rest = match[2]
            for fused, plain in CANONICAL_NAMES.items():
                rest = rest.replace(fused, plain)
            name = f"decoder.layers.{number}.{rest}"
        named[name] = parameter
    return named


@torch.no_grad()
def load(
    model: torch.nn.Module, entries: Sequence[Entry], read: Callable[[str], Tensor], topology: Topology, *, critic: bool
) -> None:
    """Fill this rank's parameters from Hugging Face tensors given by name.

    The critic keeps its own value head. Raises KeyError where the model has a parameter that no entry of the map fills.
    """
    wanted = canonical_parameters(model)
    if critic:
        wanted.pop(OUTPUT_LAYER, None)
        wanted.pop(OUTPUT_BIAS, None)
    for entry in entries:
        parameter = wanted.pop(entry.megatron_name, None)
        if parameter is not None:
            full = entry.to_megatron(*(read(name) for name in entry.hf_names))
            parameter.copy_(entry.shard(full, topology.tensor_rank, topology.tensor_size))
        if entry.megatron_name == "embedding.word_embeddings.weight" and entry.tied_output:
            tied = wanted.pop(OUTPUT_LAYER, None)
            if tied is not None:
                full = entry.to_megatron(*(read(name) for name in entry.hf_names))
                tied.copy_(entry.shard(full, topology.tensor_rank, topology.tensor_size))
    if wanted:
        raise KeyError(f"the conversion map fills none of: {', '.join(sorted(wanted))}")


@torch.no_grad()
def copy_backbone(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """A policy's weights into a critic of the same layout, which keeps its value head. Touches this rank alone."""
    into = canonical_parameters(target)
    for name, parameter in canonical_parameters(source).items():
        if name != OUTPUT_LAYER:
            into[name].copy_(parameter)


@torch.no_grad()
def export(model: torch.nn.Module, entries: Sequence[Entry], topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Each Hugging Face tensor, whole, on every rank, in the map's (layer) order. Collective over TP and PP.

    Entries travel in buckets: one gather over TP on the stage that has them, one broadcast over PP, and no rank holds
    more than a bucket beside its own part of the model.
    """
    mine = canonical_parameters(model)
    for bucket in _buckets(entries, _places(mine, entries, topology)):
        here = [
            mine[entry.megatron_name].detach() for entry in bucket.entries if bucket.stage == topology.pipeline_rank
        ]
        wholes = _gather(here, bucket.entries, topology) if here else []
        if topology.pipeline_size > 1:
            wholes = _broadcast(wholes, bucket, topology)
        for entry, whole in zip(bucket.entries, wholes, strict=True):
            yield from zip(entry.hf_names, entry.to_hf(whole), strict=True)


@dataclass
class _Bucket:
    """Consecutive entries that one pipeline stage holds in one dtype."""

    stage: int
    dtype: torch.dtype
    entries: list[Entry]

    @property
    def bytes(self) -> int:
        return sum(entry.numel for entry in self.entries) * self.dtype.itemsize


def _buckets(entries: Sequence[Entry], places: dict[str, tuple[int, torch.dtype]]) -> Iterator[_Bucket]:
    bucket: _Bucket | None = None
    for entry in entries:
        stage, dtype = places[entry.megatron_name]
        same = bucket is not None and (bucket.stage, bucket.dtype) == (stage, dtype)
        if bucket and same and bucket.bytes + entry.numel * dtype.itemsize <= BUCKET_BYTES:
            bucket.entries.append(entry)
            continue
        if bucket:
            yield bucket
        bucket = _Bucket(stage, dtype, [entry])
    if bucket:
        yield bucket


def _gather(shards: Sequence[Tensor], entries: Sequence[Entry], topology: Topology) -> list[Tensor]:
    """The whole tensors of one stage's entries from the shards of its TP ranks."""
    ranks = topology.tensor_size
    if ranks == 1:
        return list(shards)
    flat = torch.cat([shard.flatten() for shard in shards])
    parts = [torch.empty_like(flat) for _ in range(ranks)]
    dist.all_gather(parts, flat, group=topology.tensor_group)
    sizes = [shard.numel() for shard in shards]
    by_entry = zip(*(part.split(sizes) for part in parts), strict=True)
    return [
        entry.unshard([part.view(shard.shape) for part in of_ranks])
        for entry, shard, of_ranks in zip(entries, shards, by_entry, strict=True)
    ]


def _broadcast(wholes: Sequence[Tensor], bucket: _Bucket, topology: Topology) -> list[Tensor]:
    """The same tensors on every stage."""
    if wholes:
        flat = torch.cat([whole.flatten() for whole in wholes])
    else:
        flat = torch.empty(bucket.bytes // bucket.dtype.itemsize, dtype=bucket.dtype, device=topology.device)
    source = dist.get_global_rank(topology.pipeline_group, bucket.stage)
    dist.broadcast(flat, source, group=topology.pipeline_group)
    parts = flat.split([entry.numel for entry in bucket.entries])
    return [part.view(entry.shape) for entry, part in zip(bucket.entries, parts, strict=True)]


def _places(
    mine: dict[str, torch.nn.Parameter], entries: Sequence[Entry], topology: Topology
) -> dict[str, tuple[int, torch.dtype]]:
    """For each entry: the first stage that has it, and its dtype."""
    names = {entry.megatron_name for entry in entries}
    here = {name: (topology.pipeline_rank, parameter.dtype) for name, parameter in mine.items() if name in names}
    stages: list[dict[str, tuple[int, torch.dtype]]] = [here]
    if topology.pipeline_size > 1:
        stages = [{}] * topology.pipeline_size
        dist.all_gather_object(stages, here, group=topology.pipeline_group)
    return {name: place for stage in reversed(stages) for name, place in stage.items()}
