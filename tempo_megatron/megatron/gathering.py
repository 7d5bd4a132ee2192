"""Gathers what the ranks of a model computed: parts of columns over context-parallel ranks, and reports of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from tempo_megatron.megatron.topology import Topology


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
    """Returns the reported tensors [rows, ...] of all rows in the order of the batch, fp32, on every rank.

    A report has the indices of a micro-batch's rows and their tensors by name. The last stage alone has reports. Every
    rank makes this call.
    """
    gathered: dict[str, Tensor] = {}
    if topology.is_last_stage:
        indices = torch.cat([row_indices for row_indices, _ in reports]).to(topology.device)
        for name in sorted(reports[0][1]):
            local = torch.cat([tensors[name] for _, tensors in reports]).float()
            gathered[name] = local.new_zeros((rows, *local.shape[1:])).index_copy_(0, indices, local)
            if topology.data_size > 1:  # Each row is non-zero on one data-parallel rank alone.
                dist.all_reduce(gathered[name], group=topology.data_group)
    if topology.pipeline_size > 1:
        shapes = [{name: tuple(column.shape) for name, column in gathered.items()}]
        dist.broadcast_object_list(shapes, topology.last_stage_rank, group=topology.pipeline_group)
        for name, shape in shapes[0].items():
            column = gathered.get(name, torch.empty(shape, device=topology.device))
            dist.broadcast(column, topology.last_stage_rank, group=topology.pipeline_group)
            gathered[name] = column
    return gathered
