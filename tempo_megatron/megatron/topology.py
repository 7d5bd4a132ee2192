"""The device, the process groups and the position of this process in the TP x CP x PP x DP grid.

Experts have a second grid over the same ranks, EP x expert DP x PP: the ranks of a stage hold whole experts.
"""

from __future__ import annotations

import datetime
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tempo_megatron.config import ParallelConfig
from tempo_megatron.megatron import cpu

_MARGIN = datetime.timedelta(minutes=10)
"""Collectives time out this much later than the longest phase, so that the watchdog names the hanging rank first."""


@dataclass(frozen=True)
class Topology:
    """The position of one rank.

    Groups are torch process groups. `last_stage_rank` is the global rank of the pipeline's last stage, which holds the
    output layer. Data-parallel ranks read different micro-batches, and context-parallel ranks read parts of the same
    one. The ranks of an expert group have different experts of the same layers; `expert_data_rank` numbers the ranks
    that have the same experts.
    """

    rank: int
    world_size: int
    device: torch.device
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    context_rank: int
    context_size: int
    data_rank: int
    data_size: int
    tensor_group: Any
    pipeline_group: Any
    context_group: Any
    data_group: Any
    expert_rank: int
    expert_size: int
    expert_group: Any
    expert_data_rank: int
    last_stage_rank: int
    collective_limit: datetime.timedelta
    """The timeout of collectives. Groups that are created later need it too, since torch's default is half an hour."""

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1


def initialize(
    parallel: ParallelConfig, seed: int, limit_seconds: float = 3600.0, meeting_seconds: float = 60.0
) -> Topology:
    """Joins the process group that torchrun or srun describes, and creates Megatron's groups.

    A collective that takes longer than `limit_seconds` plus a margin raises an error. Raises RuntimeError if not all
    ranks join within `meeting_seconds`.
    """
    # The run's banner names missing libraries once.
    warnings.filterwarnings("ignore", message="(Transformer Engine and )?Apex (are|is) not installed")
    # Megatron's optimizer reads .grad of views into its buffers, which are not leaves.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    cpu.install()
    with cpu.accelerator_names():
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        limit = datetime.timedelta(seconds=limit_seconds) + _MARGIN
        if not dist.is_initialized():
            os.environ.setdefault(
                "TORCH_FR_BUFFER_SIZE", "2000"
            )  # The flight record of a hanging run needs the last collectives.
            _join_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo", datetime.timedelta(seconds=meeting_seconds), limit
            )
        chunks = parallel.virtual_pipeline_model_parallel_size
        parallel_state.initialize_model_parallel(
            parallel.tensor_model_parallel_size,
            parallel.pipeline_model_parallel_size,
            chunks if chunks > 1 else None,
            context_parallel_size=parallel.context_parallel_size,
            expert_model_parallel_size=parallel.expert_model_parallel_size,
            expert_tensor_parallel_size=1,  # The default is TP, which would split each expert.
            distributed_timeout_minutes=int(limit.total_seconds() // 60),
        )
        model_parallel_cuda_manual_seed(seed)
        return Topology(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
            tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
            pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
            pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
            context_rank=parallel_state.get_context_parallel_rank(),
            context_size=parallel_state.get_context_parallel_world_size(),
            data_rank=parallel_state.get_data_parallel_rank(),
            data_size=parallel_state.get_data_parallel_world_size(),
            tensor_group=parallel_state.get_tensor_model_parallel_group(),
            pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
            context_group=parallel_state.get_context_parallel_group(),
            data_group=parallel_state.get_data_parallel_group(),
            expert_rank=parallel_state.get_expert_model_parallel_rank(),
            expert_size=parallel_state.get_expert_model_parallel_world_size(),
            expert_group=parallel_state.get_expert_model_parallel_group(),
            expert_data_rank=parallel_state.get_expert_data_parallel_rank(),
            last_stage_rank=parallel_state.get_pipeline_model_parallel_last_rank(),
            collective_limit=limit,
        )


def _join_process_group(backend: str, meeting: datetime.timedelta, limit: datetime.timedelta) -> None:
    """Creates the process group, which all ranks must join within `meeting`, then sets `limit` for collectives."""
    try:
        dist.init_process_group(backend, timeout=meeting)
    except RuntimeError as error:  # torch's and gloo's errors are both RuntimeErrors.
        rank, ranks, host, port = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        reason = str(error).splitlines()[0]
        raise RuntimeError(
            f"rank {rank} of {ranks} did not meet the others at {host}:{port} within {meeting.total_seconds():g} s, "
            f"preflight.presence_seconds: {reason}"
        ) from error
    dist.distributed_c10d._set_pg_timeout(limit)
    dist.distributed_c10d._get_default_store().set_timeout(limit)


def shutdown() -> None:
    """Leaves the process group. `initialize` may be called again afterwards."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
