"""Resharding checkpoints of a run, written aside and renamed.

`checkpoints/iteration-000020/` holds one torch_dist checkpoint a model (weights and optimizer, loadable under any
TP x PP x DP) and `state.json`, written last: what else the loop needs to go on from there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.trainer import Trainer

_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
_STATE = "state.json"


def save(directory: Path, name: str, trainers: dict[str, Trainer], state: dict[str, Any], keep: int) -> None:
    """Write `directory/name`. Collective. `keep` newest checkpoints stay; an interrupted write leaves none."""
    first = dist.get_rank() == 0
    aside = directory / f".writing-{name}"
    if first:
        shutil.rmtree(aside, ignore_errors=True)
        for model in trainers:
            (aside / model).mkdir(parents=True)
    dist.barrier()
    for model, trainer in trainers.items():
        _save_model(aside / model, trainer)
    dist.barrier()
    if first:
        (aside / _STATE).write_text(json.dumps(state))
        shutil.rmtree(directory / name, ignore_errors=True)
        aside.rename(directory / name)
        for old in complete(directory)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()


def complete(directory: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    return sorted(path.parent for path in directory.glob(f"[!.]*/{_STATE}"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    return state


def load(checkpoint: Path, trainers: dict[str, Trainer]) -> None:
    """Weights and optimizer states of every trainer, under the present layout. Collective."""
    with cpu.accelerator_names():
        from megatron.core import dist_checkpointing

        for model, trainer in trainers.items():
            weights = trainer.module.sharded_state_dict(metadata=_SHARDING)
            wanted = {
                "model": weights,
                "optimizer": trainer.optimizer.sharded_state_dict(weights, is_loading=True, metadata=_SHARDING),
            }
            loaded = dist_checkpointing.load(wanted, str(checkpoint / model))
            trainer.module.load_state_dict(loaded["model"])
            trainer.optimizer.load_state_dict(loaded["optimizer"])


def _save_model(directory: Path, trainer: Trainer) -> None:
    with cpu.accelerator_names():
        from megatron.core import dist_checkpointing

        weights = trainer.module.sharded_state_dict(metadata=_SHARDING)
        optimizer = trainer.optimizer.sharded_state_dict(weights, metadata=_SHARDING)
        dist_checkpointing.save({"model": weights, "optimizer": optimizer}, str(directory))
