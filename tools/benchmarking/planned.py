"""What `tempo plan` predicts for a run on the machine that is measured."""

from __future__ import annotations

import torch

from benchmarking.setup import Setup
from tempo_megatron.config import Config
from tempo_megatron.planning.layout import USABLE_GIB_PER_GB, Machine
from tempo_megatron.planning.phases import PlannedRun


def planned_run(setup: Setup, config: Config | None = None) -> PlannedRun | None:
    """The plan of a run on these GPUs, with the setup's config unless another is given; None on CPUs."""
    if not torch.cuda.is_available():
        return None
    gpu_gb = torch.cuda.get_device_properties(0).total_memory / 2**30 / USABLE_GIB_PER_GB
    return PlannedRun(setup.settings, config or setup.config, Machine(1, setup.topology.world_size, gpu_gb, 0.0))
