"""Takes a model's state from megatron-core in the form in which torch_dist writes it."""

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
"""What this rank writes, by checkpoint name: shards with their positions in the full tensors, and bytes."""

_FILES_PER_RANK = 2
"""Each rank writes and checksums this many files in parallel."""


class _Capture(TorchDistSaveShardedStrategy):
    """A save strategy that keeps the state instead of writing it.

    megatron-core's own saving starts processes and uses the default group until it ends. This project writes in a
    thread, whose collectives have their own group.
    """

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
    """Returns this rank's part of a sharded state dict, after megatron-core has checked its integrity. Collective.

    megatron-core writes its format description into `directory`, which must exist. With `copied` the tensors are
    copies in host memory that no other code can change.
    """
    strategy = _Capture(copied)
    dist_checkpointing.save(state, str(directory), strategy)
    return strategy.captured


def write(captured: Captured, directory: Path, group: Any) -> None:
    """Writes and syncs a captured state. An error on one rank raises on all ranks. Collective over `group`."""
    planner = MCoreSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    writer = FileSystemWriter(directory, thread_count=_FILES_PER_RANK)
    save(captured, storage_writer=writer, planner=planner, process_group=group)
