"""Records the experts that a model's routers choose in a pass, as routes of the rows that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor

from tempo_megatron.megatron.packing import MicroBatch
from tempo_megatron.megatron.topology import Topology


@dataclass(frozen=True)
class _Record:
    """The experts that some layers of one rank chose for the rows of a micro-batch."""

    rows: list[int]
    """The indices of the rows in their batch."""
    lengths: list[int]
    """The tokens of each row."""
    layers: list[int]
    experts: Tensor
    """[tokens of all rows, layers, experts per token] uint8 or uint16, in host memory."""


@dataclass(frozen=True)
class RouteRecorder:
    """Records of one pass. Every rank makes every call."""

    topology: Topology
    layers: int
    """The model's layers, those without experts included."""
    experts: int
    """The experts of a layer."""
    is_split: bool
    """Whether tensor-parallel ranks route different tokens (sequence parallelism)."""
    _records: list[_Record] = field(default_factory=list)

    def add(self, micro: MicroBatch, routers: Mapping[int, Any]) -> None:
        """Adds what the routers recorded in one forward pass over a micro-batch, and clears it. `routers` are
        megatron-core's RouterReplay objects by layer; those that recorded nothing are passed over."""
        recorded = {layer: each for layer, each in routers.items() if each.recorded_topk_idx is not None}
        if not recorded:
            return
        local = torch.stack([each.recorded_topk_idx for each in recorded.values()], 1)
        for each in recorded.values():
            each.recorded_topk_idx = None
        whole = self._gathered(local)
        dtype = torch.uint8 if self.experts <= 256 else torch.uint16
        experts = whole[micro.source].to(dtype).cpu()
        self._records.append(_Record(micro.indices.tolist(), micro.rows.lengths.tolist(), list(recorded), experts))

    def _gathered(self, local: Int64[Tensor, "local_tokens layers k"]) -> Int64[Tensor, "tokens layers k"]:
        """Returns the experts of all TP and CP ranks' tokens, in the order of columns that are gathered over CP."""
        topology = self.topology
        groups = [(topology.tensor_group, topology.tensor_size if self.is_split else 1)]
        groups.append((topology.context_group, topology.context_size))
        for group, size in groups:
            if size > 1:
                parts = [torch.empty_like(local) for _ in range(size)]
                dist.all_gather(parts, local.contiguous(), group=group)
                local = torch.cat(parts)
        return local

    def routes(self, rows: int) -> tuple[Tensor, ...]:
        """Returns the routes of the `rows` rows of the batch, as `Batch.routes` has them, on every rank. Collective."""
        topology = self.topology
        records = _exchanged(self._records, topology.pipeline_group, topology.pipeline_size)
        routes: dict[int, Tensor] = {}
        for record in _exchanged(records, topology.data_group, topology.data_size):
            for row, experts in zip(record.rows, record.experts.split(record.lengths), strict=True):
                shape = (len(experts) - 1, self.layers, experts.shape[2])
                route = routes.setdefault(row, torch.zeros(shape, dtype=experts.dtype))
                for number, layer in enumerate(record.layers):  # uint16 has no assignment by a list of indices
                    route[:, layer] = experts[:-1, number]
        return tuple(routes[row] for row in range(rows))


def _exchanged(records: list[_Record], group: Any, ranks: int) -> list[_Record]:
    """Returns the records of all ranks of a group."""
    if ranks == 1:
        return records
    parts: list[Iterable[_Record]] = [()] * ranks
    dist.all_gather_object(parts, records, group=group)
    return [record for part in parts for record in part]
