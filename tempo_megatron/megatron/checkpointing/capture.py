"""A model's state as torch_dist writes it, taken from megatron-core before anything is written."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

Captured = dict[str, Any]
"""what this rank writes, by the names in the checkpoint: tensors with their places in whole ones, and bytes"""

_FILES_A_RANK = 2
"""written and checksummed side by side"""


class _Capture(TorchDistSaveShardedStrategy):
    """Takes what it is given to save. megatron-core's own way of saving starts processes and talks on the default group
    until the end; this project writes in a thread, whose collectives have a group of their own."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self._copied = copied
        self.captured: Captured = {}

    def save(self, sharded_state_dict: Any, checkpoint_dir: Path) -> None:
        parts, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        for part in itertools.chain(*parts.values()):
            if self._copied and isinstance(part, ShardedTensor):
                part.data = part.data.detach().to("cpu", copy=True)
        self.captured = mcore_to_pyt_state_dict(parts)


def capture(state: dict[str, Any], directory: Path, *, copied: bool) -> Captured:
    """This rank's part of a sharded state dict, whose integrity megatron-core checks; `directory`, which exists, gets
    its description of the format. `copied`: tensors are copies in host memory that nobody else can change. Collective.
    """
    strategy = _Capture(copied)
    dist_checkpointing.save(state, str(directory), strategy)
    return strategy.captured


def write(captured: Captured, directory: Path, group: Any) -> None:
    """Write and sync a captured state; an error on one rank is an error on all. Collective over `group`."""
    planner = MCoreSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    writer = FileSystemWriter(directory, thread_count=_FILES_A_RANK)
    save(captured, storage_writer=writer, planner=planner, process_group=group)
