"""Hugging Face tensors into a Megatron model of any layout, and out of it again, through the conversion maps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from checkpoints_convert.mapping import OUTPUT_BIAS, OUTPUT_LAYER, Entry
from tempo_megatron.megatron.layers import CANONICAL_NAMES
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.progress import tick

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

    Entries travel in buckets: one gather over TP on the stage that has them, one broadcast over PP. While the tensors
    of a bucket are used the next one is on its way, on GPUs on a stream of its own. Beside its own part of the model a
    rank so holds two buckets, its shards of the second, and the tensor that it gives out.
    """
    mine = canonical_parameters(model)
    side = torch.cuda.Stream() if topology.device.type == "cuda" else None
    buckets = _buckets(entries, _places(mine, entries, topology))
    arriving = ((bucket, *_fetch_beside(side, bucket, mine, topology)) for bucket in buckets)
    for bucket, pieces, arrived in _made_ahead(arriving):
        if arrived:
            torch.cuda.current_stream().wait_event(arrived)
        for entry, shards in zip(bucket.entries, pieces, strict=True):
            yield from zip(entry.hf_names, entry.to_hf(entry.unshard(shards)), strict=True)
        tick()


def _made_ahead[Item](items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each given out when the next one has been made."""
    present = next(items, None)
    while present is not None:
        following = next(items, None)
        yield present
        present = following


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


def _fetch_beside(
    side: torch.cuda.Stream | None, bucket: _Bucket, mine: dict[str, torch.nn.Parameter], topology: Topology
) -> tuple[list[list[Tensor]], torch.cuda.Event | None]:
    """`_fetch` on a stream, and the event after which its result is there.

    The stream waits for all that has been asked of the present one, and so for the users of memory that it reuses.
    """
    if side is None:
        return _fetch(bucket, mine, topology), None
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        return _fetch(bucket, mine, topology), side.record_event()


def _fetch(bucket: _Bucket, mine: dict[str, torch.nn.Parameter], topology: Topology) -> list[list[Tensor]]:
    """For each entry its shards of all TP ranks."""
    here = [mine[entry.megatron_name].detach() for entry in bucket.entries if bucket.stage == topology.pipeline_rank]
    if topology.tensor_size * topology.pipeline_size == 1:
        return [[shard] for shard in here]
    shapes = [_shard_shape(entry, topology.tensor_size) for entry in bucket.entries]
    sizes = [math.prod(shape) for shape in shapes]
    flat = _broadcast(_gather(here, topology), sizes, bucket, topology)
    by_entry = zip(*(part.split(sizes) for part in flat.chunk(topology.tensor_size)), strict=True)
    return [[part.view(shape) for part in parts] for shape, parts in zip(shapes, by_entry, strict=True)]


def _shard_shape(entry: Entry, ranks: int) -> tuple[int, ...]:
    return tuple(entry.shard(torch.empty(entry.shape, device="meta"), 0, ranks).shape)


def _gather(shards: Sequence[Tensor], topology: Topology) -> Tensor | None:
    """The shards of all TP ranks, one rank after the other, in one piece; None on a stage that has none."""
    if not shards:
        return None
    flat = torch.cat([shard.flatten() for shard in shards])
    if topology.tensor_size == 1:
        return flat
    gathered = flat.new_empty(topology.tensor_size * flat.numel())
    dist.all_gather_into_tensor(gathered, flat, group=topology.tensor_group)
    return gathered


def _broadcast(flat: Tensor | None, sizes: Sequence[int], bucket: _Bucket, topology: Topology) -> Tensor:
    """What the bucket's stage has gathered, on every stage."""
    if flat is None:
        flat = torch.empty(topology.tensor_size * sum(sizes), dtype=bucket.dtype, device=topology.device)
    if topology.pipeline_size > 1:
        source = dist.get_global_rank(topology.pipeline_group, bucket.stage)
        dist.broadcast(flat, source, group=topology.pipeline_group)
    return flat


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
