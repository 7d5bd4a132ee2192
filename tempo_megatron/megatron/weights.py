"""Hugging Face tensors into a Megatron model of any layout, and out of it again, through the conversion maps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.conversion.mapping import OUTPUT_BIAS, OUTPUT_LAYER, ParameterMapping, VocabularyMapping
from tempo_megatron.conversion.rows import TensorRows
from tempo_megatron.megatron.layers import CANONICAL_NAMES
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.utils.heartbeat import tick

BUCKET_BYTES = 256 * 2**20
"""of one collective of `export`, over all TP ranks"""


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
def load_weights(
    model: torch.nn.Module,
    entries: Sequence[ParameterMapping],
    read: Callable[[str], Tensor],
    topology: Topology,
    *,
    critic: bool,
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
def export(
    model: torch.nn.Module, entries: Sequence[ParameterMapping], topology: Topology
) -> Iterator[tuple[str, Tensor | TensorRows]]:
    """Each Hugging Face tensor on every rank, in the map's (layer) order. Collective over TP and PP.

    They come whole, but for a vocabulary larger than a bucket, which comes in rows (`rows.whole` puts them together),
    and may be the model's own memory or be used for what follows: to be read before the next is asked for.

    Entries travel in buckets: one gather over TP on the stage that has them, one broadcast over PP. While the tensors
    of a bucket are used the next one is on its way, on GPUs on a stream of its own. Beside its own part of the model a
    rank so holds up to three buckets, of the last tensor given out, the next and one that arrives, and its shards of
    that. A layer's matrix that is larger than a bucket is one by itself.
    """
    mine = canonical_parameters(model)
    side = torch.cuda.Stream() if topology.device.type == "cuda" else None
    buckets = _buckets(entries, _places(mine, entries, topology), topology)
    arriving = ((bucket, *_fetch_beside(side, bucket, mine, topology)) for bucket in buckets)
    for bucket, shards, arrived in _made_ahead(arriving):
        if arrived:
            torch.cuda.current_stream().wait_event(arrived)
        for part, of_ranks in zip(bucket.parts, shards, strict=True):
            yield from part.to_hf(of_ranks)
        tick()


def _made_ahead[Item](items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each given out when the next one has been made."""
    present = next(items, None)
    while present is not None:
        following = next(items, None)
        yield present
        present = following


@dataclass(frozen=True)
class _Part:
    """What travels at once of an entry: from each TP rank its shard, or these rows of it."""

    entry: ParameterMapping
    shard_shape: tuple[int, ...]
    rows: slice | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """of what one TP rank sends"""
        if self.rows is None:
            return self.shard_shape
        return (self.rows.stop - self.rows.start, *self.shard_shape[1:])

    def of(self, shard: Tensor) -> Tensor:
        return shard if self.rows is None else shard[self.rows]

    def to_hf(self, of_ranks: Sequence[Tensor]) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """Hugging Face tensors, or rows of one, from what all TP ranks have sent."""
        if self.rows is None:
            yield from zip(self.entry.hf_names, self.entry.to_hf(self.entry.unshard(of_ranks)), strict=True)
            return
        assert isinstance(self.entry, VocabularyMapping)
        for rank, sent in enumerate(of_ranks):
            first = rank * self.shard_shape[0] + self.rows.start
            rows = self.entry.rows_to_hf(sent, first)
            if len(rows):
                yield self.entry.hf_names[0], TensorRows(rows, first, self.entry.vocab_size)


def _parts(entry: ParameterMapping, dtype: torch.dtype, topology: Topology) -> Iterator[_Part]:
    """An entry whole, or a vocabulary of which all rows would not fit into a bucket."""
    shape = tuple(entry.shard(torch.empty(entry.shape, device="meta"), 0, topology.tensor_size).shape)
    spread = topology.tensor_size * topology.pipeline_size > 1
    if not (spread and isinstance(entry, VocabularyMapping) and entry.numel * dtype.itemsize > BUCKET_BYTES):
        yield _Part(entry, shape)
        return
    at_once = max(1, BUCKET_BYTES // (topology.tensor_size * math.prod(shape[1:]) * dtype.itemsize))
    for start in range(0, shape[0], at_once):
        yield _Part(entry, shape, slice(start, min(start + at_once, shape[0])))


@dataclass
class _Bucket:
    """What one pipeline stage holds in one dtype, in the map's order."""

    stage: int
    dtype: torch.dtype
    parts: list[_Part]


def _buckets(
    entries: Sequence[ParameterMapping], places: dict[str, tuple[int, torch.dtype]], topology: Topology
) -> Iterator[_Bucket]:
    bucket: _Bucket | None = None
    filled = 0
    for entry in entries:
        stage, dtype = places[entry.megatron_name]
        for part in _parts(entry, dtype, topology):
            size = topology.tensor_size * math.prod(part.shape) * dtype.itemsize
            same = bucket is not None and (bucket.stage, bucket.dtype) == (stage, dtype)
            if bucket and same and filled + size <= BUCKET_BYTES:
                bucket.parts.append(part)
                filled += size
                continue
            if bucket:
                yield bucket
            bucket, filled = _Bucket(stage, dtype, [part]), size
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
    """Each part as all TP ranks have it."""
    there = bucket.stage == topology.pipeline_rank
    here = [part.of(mine[part.entry.megatron_name].detach()) for part in bucket.parts] if there else []
    if topology.tensor_size * topology.pipeline_size == 1:
        return [[shard] for shard in here]
    sizes = [math.prod(part.shape) for part in bucket.parts]
    flat = _broadcast(_gather(here, topology), sizes, bucket, topology)
    by_part = zip(*(sent.split(sizes) for sent in flat.chunk(topology.tensor_size)), strict=True)
    return [[sent.view(part.shape) for sent in of_ranks] for part, of_ranks in zip(bucket.parts, by_part, strict=True)]


def _gather(shards: Sequence[Tensor], topology: Topology) -> Tensor | None:
    """The shards of all TP ranks, one rank after the other, in one piece; None on a stage that has none."""
    if not shards:
        return None
    flat = torch.cat([shard.flatten() for shard in shards]) if len(shards) > 1 else shards[0].flatten()
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
    mine: dict[str, torch.nn.Parameter], entries: Sequence[ParameterMapping], topology: Topology
) -> dict[str, tuple[int, torch.dtype]]:
    """For each entry: the first stage that has it, and its dtype."""
    names = {entry.megatron_name for entry in entries}
    here = {name: (topology.pipeline_rank, parameter.dtype) for name, parameter in mine.items() if name in names}
    stages: list[dict[str, tuple[int, torch.dtype]]] = [here]
    if topology.pipeline_size > 1:
        stages = [{}] * topology.pipeline_size
        dist.all_gather_object(stages, here, group=topology.pipeline_group)
    return {name: place for stage in reversed(stages) for name, place in stage.items()}
