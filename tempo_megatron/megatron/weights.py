"""Hugging Face tensors into a Megatron model of any layout, and out of it again, through the conversion maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from checkpoints_convert.mapping import Entry
from tempo_megatron.megatron.layers import CANONICAL_NAMES
from tempo_megatron.megatron.topology import Topology

OUTPUT_LAYER = "output_layer.weight"


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
def export(model: torch.nn.Module, entries: Sequence[Entry], topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Each Hugging Face tensor, whole, on every rank, in the map's (layer) order. Collective over TP and PP.

    At most one entry is held at a time: its shards are gathered over TP on the stage that has it and sent to the
    others.
    """
    mine = canonical_parameters(model)
    owners = _owners(mine, entries, topology)
    for entry in entries:
        owner, shape, dtype = owners[entry.megatron_name]
        if owner == topology.pipeline_rank:
            full = _gather(mine[entry.megatron_name].detach(), entry, topology)
        else:
            full = torch.empty(shape, dtype=dtype, device=topology.device)
        if topology.pipeline_size > 1:
            full = full.contiguous()
            dist.broadcast(full, dist.get_global_rank(topology.pipeline_group, owner), group=topology.pipeline_group)
        yield from zip(entry.hf_names, entry.to_hf(full), strict=True)


def _gather(shard: Tensor, entry: Entry, topology: Topology) -> Tensor:
    if entry.shard_axis is None or topology.tensor_size == 1:
        return shard
    shards = [torch.empty_like(shard) for _ in range(topology.tensor_size)]
    dist.all_gather(shards, shard.contiguous(), group=topology.tensor_group)
    return entry.unshard(shards)


def _owners(
    mine: dict[str, torch.nn.Parameter], entries: Sequence[Entry], topology: Topology
) -> dict[str, tuple[int, torch.Size, torch.dtype]]:
    """For each entry: the first stage that has it, its full shape and dtype."""
    described = {}
    for entry in entries:
        if entry.megatron_name in mine:
            parameter = mine[entry.megatron_name]
            shape = list(parameter.shape)
            if entry.shard_axis is not None:
                shape[entry.shard_axis] *= topology.tensor_size
            described[entry.megatron_name] = (topology.pipeline_rank, torch.Size(shape), parameter.dtype)
    stages: list[dict[str, tuple[int, torch.Size, torch.dtype]]] = [{}] * topology.pipeline_size
    if topology.pipeline_size > 1:
        dist.all_gather_object(stages, described, group=topology.pipeline_group)
    else:
        stages = [described]
    owners: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
    for stage in stages:
        for name, description in stage.items():
            owners.setdefault(name, description)
    return owners
