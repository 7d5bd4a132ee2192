"""Gathers what the ranks of a model computed: parts of columns over context-parallel ranks, and reports of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float32, Shaped
from torch import Tensor

from tempo_megatron.megatron.topology import Topology

Shapes = dict[str, tuple[int, ...]]
"""The shape of each column, by name."""


def gather_over_context(column: Shaped[Tensor, "local_tokens ..."], topology: Topology) -> Shaped[Tensor, "tokens ..."]:
    """Returns the parts of all context-parallel ranks in rank order. local_tokens = tokens / CP.

    Every rank computes the same loss from the result, so a part takes its gradient from its own rank alone.
    """
    if topology.context_size == 1:
        return column
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return gather_from_sequence_parallel_region(column, tensor_parallel_output_grad=False, group=topology.context_group)


def gather_rows(
    reports: Sequence[tuple[Tensor, dict[str, Tensor]]], rows: int, topology: Topology
) -> dict[str, Tensor]:
    """Returns the reported tensors [rows, ...] of all rows, in the order of the batch, on every rank.

    They are fp32 in host memory. Each is a view of one storage, in which all travel between ranks and to the host at
    once. Clone a column before you save or send it, or the whole storage goes along.
    A report has the indices of a micro-batch's rows and their tensors by name. The last stage alone has reports. Every
    rank makes this call.
    """
    shapes: Shapes = {}
    if topology.is_last_stage:
        shapes = {name: (rows, *tensor.shape[1:]) for name, tensor in sorted(reports[0][1].items())}
    if topology.pipeline_size > 1:
        objects = [shapes]
        dist.broadcast_object_list(objects, topology.last_stage_rank, group=topology.pipeline_group)
        shapes = objects[0]
    storage = torch.zeros(sum(map(math.prod, shapes.values())), dtype=torch.float32, device=topology.device)
    if topology.is_last_stage:
        indices = torch.cat([row_indices for row_indices, _ in reports]).to(topology.device)
        for name, column in _columns(storage, shapes).items():
            column.index_copy_(0, indices, torch.cat([tensors[name] for _, tensors in reports]).float())
        if topology.data_size > 1:  # Each row is non-zero on one data-parallel rank alone.
            dist.all_reduce(storage, group=topology.data_group)
    if topology.pipeline_size > 1:
        dist.broadcast(storage, topology.last_stage_rank, group=topology.pipeline_group)
    return _columns(storage.cpu(), shapes)


def _columns(storage: Float32[Tensor, " elements"], shapes: Shapes) -> dict[str, Tensor]:
    """Returns views of these shapes, which lie one after the other in the storage."""
    views = storage.split([math.prod(shape) for shape in shapes.values()])
    return {name: view.view(shape) for (name, shape), view in zip(shapes.items(), views, strict=True)}
