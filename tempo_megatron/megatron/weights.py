"""Loads Hugging Face tensors into a Megatron model of any layout, and exports them, through the conversion maps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.conversion.mapping import OUTPUT_BIAS, OUTPUT_LAYER, ParameterMapping, VocabularyMapping
from tempo_megatron.conversion.rows import TensorRows, assemble_tensors
from tempo_megatron.megatron.layers import CANONICAL_NAMES
from tempo_megatron.megatron.topology import Topology
from tempo_megatron.utils.heartbeat import tick

BUCKET_BYTES = 256 * 2**20
"""The size of one collective of an export, summed over all TP ranks."""


_SEQUENTIAL_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(.*)")
_GROUPED_EXPERT = re.compile(r"mlp\.experts\.(linear_fc[12])\.weight(\d+)")


def canonical_parameters(chunks: Sequence[torch.nn.Module]) -> dict[str, torch.nn.Parameter]:
    """Returns this rank's parameters by the names of the maps: unfused norms, global numbers of layers and experts."""
    by_name = {}
    for chunk in chunks:
        layers = chunk.get_submodule("decoder.layers")
        for name, parameter in chunk.named_parameters():
            match = re.match(r"decoder\.layers\.(\d+)\.(.*)", name)
            if match:
                layer: Any = layers[int(match[1])]  # type: ignore[index]
                number, name_in_layer = layer.layer_number - 1, match[2]
                for fused, plain in CANONICAL_NAMES.items():
                    name_in_layer = name_in_layer.replace(fused, plain)
                name = f"decoder.layers.{number}.{_with_global_expert(name_in_layer, layer)}"
            by_name[name] = parameter
    return by_name


def _with_global_expert(name: str, layer: Any) -> str:
    """Returns a parameter's name within its layer, an expert's by its number among the experts of all ranks."""
    if match := _SEQUENTIAL_EXPERT.fullmatch(name):
        expert, parameter = int(match[1]), match[2]
    elif match := _GROUPED_EXPERT.fullmatch(name):
        expert, parameter = int(match[2]), f"{match[1]}.weight"
    else:
        return name
    return f"mlp.experts.{layer.mlp.local_expert_indices[expert]}.{parameter}"


@torch.no_grad()
def load_hf_weights(
    chunks: Sequence[torch.nn.Module],
    entries: Sequence[ParameterMapping],
    read: Callable[[str], Tensor],
    topology: Topology,
    *,
    critic: bool,
) -> None:
    """Fills this rank's parameters from Hugging Face tensors, which `read` returns by name.

    The critic keeps its own value head. Raises KeyError if no entry of the map fills a parameter of the model.
    """
    unfilled = canonical_parameters(chunks)
    if critic:
        unfilled.pop(OUTPUT_LAYER, None)
        unfilled.pop(OUTPUT_BIAS, None)
    for entry in entries:
        parameter = unfilled.pop(entry.megatron_name, None)
        if parameter is not None:
            full = entry.to_megatron(*(read(name) for name in entry.hf_names))
            parameter.copy_(entry.shard(full, topology.tensor_rank, topology.tensor_size))
        if entry.megatron_name == "embedding.word_embeddings.weight" and entry.tied_output:
            tied = unfilled.pop(OUTPUT_LAYER, None)
            if tied is not None:
                full = entry.to_megatron(*(read(name) for name in entry.hf_names))
                tied.copy_(entry.shard(full, topology.tensor_rank, topology.tensor_size))
    if unfilled:
        raise KeyError(f"the conversion map fills none of: {', '.join(sorted(unfilled))}")


@torch.no_grad()
def copy_backbone(
    policy: Sequence[torch.nn.Module],
    critic: Sequence[torch.nn.Module],
    entries: Sequence[ParameterMapping],
    topology: Topology,
) -> None:
    """Copies a policy's weights into a critic, which keeps its value head. Collective over TP, EP and PP.

    The layers of the two are cut into stages at other places. `entries` are the policy's map.
    """
    exported = assemble_tensors(export_hf_weights(policy, entries, topology))

    def read(name: str) -> Tensor:  # Both functions go through the map in its order.
        return next(tensor for exported_name, tensor in exported if exported_name == name)

    load_hf_weights(critic, entries, read, topology, critic=True)
    for _ in exported:  # Other ranks load tensors that this one does not have.
        pass


def export_hf_weights(
    chunks: Sequence[torch.nn.Module], entries: Sequence[ParameterMapping], topology: Topology
) -> Iterator[tuple[str, Tensor | TensorRows]]:
    """Returns the tensors of one export, as `WeightExporter` yields them. Collective over TP, EP and PP."""
    return WeightExporter(chunks, entries, topology).export()


class WeightExporter:
    """Exports the weights of one model, once or after every update. Collective over TP, EP and PP.

    Entries are sent in buckets, each with one gather over TP on the stage that holds it and one broadcast over PP. A
    bucket of experts has a broadcast over EP from the rank that holds them instead of the gather. The
    next bucket is fetched while the tensors of the present one are used; on GPUs a separate stream does this. A matrix
    larger than a bucket is a bucket of its own. Besides its part of the model, a rank holds up to three buckets (of the
    last yielded tensor, the next one and the one being fetched) and its shards of the last of these.

    The buckets depend on names, shapes and layout alone, and so are cut once: a model with experts has thousands of
    parameters. The model must keep its parameters and their dtypes. Their memory may move.
    """

    def __init__(
        self, chunks: Sequence[torch.nn.Module], entries: Sequence[ParameterMapping], topology: Topology
    ) -> None:
        self._topology = topology
        self._parameters = canonical_parameters(chunks)
        self._buckets = list(_buckets(entries, _locations(self._parameters, entries, topology), topology))

    def export(self) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """Yields each Hugging Face tensor on every rank, in the (layer) order of the map.

        A vocabulary larger than a bucket comes in blocks of rows, which `assemble_tensors` joins. All other tensors
        come whole. A tensor may share memory with the model or with a later tensor, so use it before the next one is
        requested.
        """
        side_stream = torch.cuda.Stream() if self._topology.device.type == "cuda" else None
        fetches = (
            (bucket, *_fetch_on_stream(side_stream, bucket, self._parameters, self._topology))
            for bucket in self._buckets
        )
        for bucket, shards, fetched in _one_ahead(fetches):
            if fetched:
                torch.cuda.current_stream().wait_event(fetched)
            for part, rank_shards in zip(bucket.parts, shards, strict=True):
                yield from part.to_hf(rank_shards)
            tick()


def _one_ahead[Item](items: Iterator[Item]) -> Iterator[Item]:
    """Yields the same items, each after the next one has been computed."""
    present = next(items, None)
    while present is not None:
        following = next(items, None)
        yield present
        present = following


@dataclass(frozen=True)
class _Part:
    """The part of an entry that one bucket holds: the shard of each TP rank, or these rows of it."""

    entry: ParameterMapping
    shard_shape: tuple[int, ...]
    rows: slice | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what one TP rank sends."""
        if self.rows is None:
            return self.shard_shape
        return (self.rows.stop - self.rows.start, *self.shard_shape[1:])

    def select(self, shard: Tensor) -> Tensor:
        """Returns this part of a shard."""
        return shard if self.rows is None else shard[self.rows]

    def to_hf(self, rank_shards: Sequence[Tensor]) -> Iterator[tuple[str, Tensor | TensorRows]]:
        """Yields Hugging Face tensors, or rows of one, from the shards of all TP ranks."""
        if self.rows is None:
            yield from zip(self.entry.hf_names, self.entry.to_hf(self.entry.unshard(rank_shards)), strict=True)
            return
        assert isinstance(self.entry, VocabularyMapping)
        for rank, shard in enumerate(rank_shards):
            first = rank * self.shard_shape[0] + self.rows.start
            rows = self.entry.rows_to_hf(shard, first)
            if len(rows):
                yield self.entry.hf_names[0], TensorRows(rows, first, self.entry.vocab_size)


def _parts(entry: ParameterMapping, dtype: torch.dtype, topology: Topology) -> Iterator[_Part]:
    """Yields an entry as one part, or a vocabulary that is larger than a bucket as blocks of rows."""
    shape = tuple(entry.shard(torch.empty(entry.shape, device="meta"), 0, topology.tensor_size).shape)
    sharded = topology.tensor_size * topology.pipeline_size > 1
    if not (sharded and isinstance(entry, VocabularyMapping) and entry.numel * dtype.itemsize > BUCKET_BYTES):
        yield _Part(entry, shape)
        return
    block_rows = max(1, BUCKET_BYTES // (topology.tensor_size * math.prod(shape[1:]) * dtype.itemsize))
    for start in range(0, shape[0], block_rows):
        yield _Part(entry, shape, slice(start, min(start + block_rows, shape[0])))


@dataclass(frozen=True)
class _Location:
    """Where a parameter is: the first pipeline stage that has it, and for an expert the expert-parallel rank."""

    stage: int
    expert_rank: int | None
    dtype: torch.dtype

    def shards(self, topology: Topology) -> int:
        """Returns the number of ranks that hold a part each. Tensor parallelism splits no expert."""
        return topology.tensor_size if self.expert_rank is None else 1


@dataclass
class _Bucket:
    """Parts from one location, in the order of the map."""

    location: _Location
    parts: list[_Part]


def _buckets(
    entries: Sequence[ParameterMapping], locations: dict[str, _Location], topology: Topology
) -> Iterator[_Bucket]:
    bucket: _Bucket | None = None
    filled = 0
    for entry in entries:
        location = locations[entry.megatron_name]
        for part in _parts(entry, location.dtype, topology):
            size = location.shards(topology) * math.prod(part.shape) * location.dtype.itemsize
            if bucket and bucket.location == location and filled + size <= BUCKET_BYTES:
                bucket.parts.append(part)
                filled += size
                continue
            if bucket:
                yield bucket
            bucket, filled = _Bucket(location, [part]), size
    if bucket:
        yield bucket


def _fetch_on_stream(
    stream: torch.cuda.Stream | None,
    bucket: _Bucket,
    parameters: dict[str, torch.nn.Parameter],
    topology: Topology,
) -> tuple[list[list[Tensor]], torch.cuda.Event | None]:
    """Runs `_fetch` on a stream; returns its result and the event that completes it.

    The stream waits for all work on the present stream, and so for all users of the memory that it reuses.
    """
    if stream is None:
        return _fetch(bucket, parameters, topology), None
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        return _fetch(bucket, parameters, topology), stream.record_event()


def _fetch(bucket: _Bucket, parameters: dict[str, torch.nn.Parameter], topology: Topology) -> list[list[Tensor]]:
    """Returns, for each part of a bucket, its shards: those of all TP ranks, or the one of an expert."""
    location, shards = bucket.location, bucket.location.shards(topology)
    on_this_stage = location.stage == topology.pipeline_rank
    is_local = on_this_stage and location.expert_rank in (None, topology.expert_rank)
    local = [part.select(parameters[part.entry.megatron_name].detach()) for part in bucket.parts if is_local]
    senders = topology.tensor_size if location.expert_rank is None else topology.expert_size
    if senders * topology.pipeline_size == 1:
        return [[shard] for shard in local]
    sizes = [math.prod(part.shape) for part in bucket.parts]
    flat = torch.cat([shard.flatten() for shard in local]) if len(local) > 1 else local[0].flatten() if local else None
    if on_this_stage and location.expert_rank is not None:
        flat = _broadcast(flat, sum(sizes), location, topology, topology.expert_group, location.expert_rank)
    elif flat is not None:
        flat = _gather(flat, topology)
    flat = _broadcast(flat, shards * sum(sizes), location, topology, topology.pipeline_group, location.stage)
    by_part = zip(*(rank_flat.split(sizes) for rank_flat in flat.chunk(shards)), strict=True)
    return [
        [shard.view(part.shape) for shard in rank_shards]
        for part, rank_shards in zip(bucket.parts, by_part, strict=True)
    ]


def _gather(flat: Tensor, topology: Topology) -> Tensor:
    """Returns the flat tensors of all TP ranks in rank order, as one."""
    if topology.tensor_size == 1:
        return flat
    gathered = flat.new_empty(topology.tensor_size * flat.numel())
    dist.all_gather_into_tensor(gathered, flat, group=topology.tensor_group)
    return gathered


def _broadcast(
    flat: Tensor | None, size: int, location: _Location, topology: Topology, group: Any, source: int
) -> Tensor:
    """Returns the flat tensor [size] of the group's rank `source`, on all ranks of the group."""
    if flat is None:
        flat = torch.empty(size, dtype=location.dtype, device=topology.device)
    if dist.get_world_size(group) > 1:
        dist.broadcast(flat, dist.get_global_rank(group, source), group=group)
    return flat


def _locations(
    parameters: dict[str, torch.nn.Parameter], entries: Sequence[ParameterMapping], topology: Topology
) -> dict[str, _Location]:
    """Returns the location of each entry."""
    experts = {entry.megatron_name: entry.slot is not None for entry in entries}
    locations = {
        name: _Location(topology.pipeline_rank, topology.expert_rank if experts[name] else None, parameter.dtype)
        for name, parameter in parameters.items()
        if name in experts
    }
    for group in (topology.expert_group, topology.pipeline_group):
        of_ranks: list[dict[str, _Location]] = [locations] * dist.get_world_size(group)
        if len(of_ranks) > 1:
            dist.all_gather_object(of_ranks, locations, group=group)
        # In the group of stages the first one that has an entry decides.
        locations = {name: location for of_rank in reversed(of_ranks) for name, location in of_rank.items()}
    return locations
