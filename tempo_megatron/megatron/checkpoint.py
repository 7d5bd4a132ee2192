"""Resharding checkpoints of a run, written aside and renamed.

`checkpoints/iteration-000020/` holds one torch_dist checkpoint a model (weights and optimizer, loadable under any
TP x PP x DP), what `checkpoint_files` describes, and `state.json`, written last: what else the loop needs to go on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tempo_megatron.megatron import checkpoint_files, cpu
from tempo_megatron.megatron.offload import Kind
from tempo_megatron.megatron.trainer import Trainer

_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
_STATE = "state.json"
_BEST = "best"


def save(
    directory: Path,
    iteration: int,
    trainers: dict[str, Trainer],
    state: dict[str, Any],
    *,
    keep: int,
    best: int | None = None,
    hf_path: Path,
    target_range: str,
) -> None:
    """Write `directory/iteration-N`. Collective. An interrupted write leaves none.

    The `keep` newest checkpoints stay, and that of iteration `best`, which `directory/best` links to.
    What stands beside the weights of `hf_path` goes in too, so that a checkpoint can be exported from itself alone.
    """
    first, name = dist.get_rank() == 0, _name(iteration)
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
        checkpoint_files.describe(aside, hf_path, target_range)
        (aside / _STATE).write_text(json.dumps(state))
        shutil.rmtree(directory / name, ignore_errors=True)
        aside.rename(directory / name)
        if best is not None:
            (directory / ".best").unlink(missing_ok=True)
            (directory / ".best").symlink_to(_name(best))
            (directory / ".best").rename(directory / _BEST)
        for old in complete(directory)[:-keep]:
            if best is None or old.name != _name(best):
                shutil.rmtree(old)
    dist.barrier()


def complete(directory: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    return sorted(path.parent for path in directory.glob(f"iteration-*/{_STATE}"))


def kept(directory: Path, newest: int, best: int | None) -> set[int]:
    """Iterations of the checkpoints that stay when so many of the newest are kept, and the best."""
    there = [int(path.name.removeprefix("iteration-")) for path in complete(directory)]
    return {number for place, number in enumerate(there) if place >= len(there) - newest or number == best}


def _name(iteration: int) -> str:
    return f"iteration-{iteration:06d}"


def read_state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    return state


def load(checkpoint: Path, trainers: dict[str, Trainer]) -> None:
    """Weights and optimizer states of every trainer, under the present layout. Collective."""
    with cpu.accelerator_names():
        from megatron.core import dist_checkpointing

        for model, trainer in trainers.items():
            with trainer.awake(Kind.weights, Kind.optimizer, changes=True):
                weights = trainer.module.sharded_state_dict(metadata=_SHARDING)
                wanted = {
                    "model": weights,
                    "optimizer": trainer.optimizer.sharded_state_dict(weights, is_loading=True, metadata=_SHARDING),
                }
                loaded = dist_checkpointing.load(wanted, str(checkpoint / model))
                trainer.module.load_state_dict(loaded["model"])
                trainer.optimizer.load_state_dict(loaded["optimizer"])


def load_weights(directory: Path, module: Any) -> None:
    """A model's weights alone, from one role's directory of any checkpoint. Collective.

    Transformer Engine's extra states are left as they are: a converted checkpoint has none.
    """
    with cpu.accelerator_names():
        from megatron.core import dist_checkpointing

        every = module.sharded_state_dict(metadata=_SHARDING)
        wanted = {name: part for name, part in every.items() if not name.endswith("_extra_state")}
        loaded = dist_checkpointing.load({"model": wanted}, str(directory))["model"]
        unfilled, _ = module.load_state_dict(loaded, strict=False)
        lost = [name for name in unfilled if not name.endswith("_extra_state")]
        if lost:
            raise KeyError(f"{directory} fills none of: {', '.join(lost)}")


def save_weights(directory: Path, module: Any) -> None:
    """A model's weights alone, for `load_weights`. Collective; an interrupted write leaves nothing of that name."""
    aside = directory.with_name(f".writing-{directory.name}")
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    with cpu.accelerator_names():
        from megatron.core import dist_checkpointing

        dist_checkpointing.save({"model": module.sharded_state_dict(metadata=_SHARDING)}, str(aside))
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)
    dist.barrier()


def _save_model(directory: Path, trainer: Trainer) -> None:
    with trainer.awake(Kind.weights, Kind.optimizer), cpu.accelerator_names():
        from megatron.core import dist_checkpointing

        weights = trainer.module.sharded_state_dict(metadata=_SHARDING)
        optimizer = trainer.optimizer.sharded_state_dict(weights, metadata=_SHARDING)
        dist_checkpointing.save({"model": weights, "optimizer": optimizer}, str(directory))
