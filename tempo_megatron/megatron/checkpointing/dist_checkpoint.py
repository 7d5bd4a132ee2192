"""Models to and from checkpoints that any TP x PP x DP loads: one torch_dist directory a model, weights and optimizer.

A checkpoint is written aside, each file described in its `manifest`, synced, and renamed. Files are read once their
checksums have matched.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing import integrity, safe_pickle
from tempo_megatron.megatron.offload import Kind
from tempo_megatron.megatron.trainer import ScoringModel
from tempo_megatron.utils.distributed import say

if TYPE_CHECKING:
    from tempo_megatron.megatron.checkpointing.capture import Captured

_ASIDE, _REMOVED = ".writing-", ".removing-"


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written; the message has the traceback of every rank that failed."""


def begin(checkpoint: Path, roles: Iterable[str]) -> None:
    """Make room aside for models that are to be captured and written. Collective."""

    def make() -> None:
        aside = _aside(checkpoint)
        shutil.rmtree(aside, ignore_errors=True)
        for role in roles:
            (aside / role).mkdir(parents=True)

    on_first(make)


def captured(checkpoint: Path, models: Mapping[str, ScoringModel], *, copied: bool) -> Iterator[tuple[str, Captured]]:
    """What this rank writes of each model, after `begin`: weights, and the optimizer of a model that has one. A model
    rests again once the next is asked for, and what was captured is lost with it unless it was `copied` into host
    memory. Collective."""
    for role, model in models.items():
        with model.awake(Kind.weights, Kind.optimizer):
            with cpu.accelerator_names():
                part = _capture(_state(model, is_loading=False), checkpoint, role, copied)
            yield role, part


def copied_bytes(model: ScoringModel) -> int:
    """Bytes of host memory that this rank's copies of a model take in `captured`: the first of the data-parallel ranks
    has the weights, and of an optimizer fp32 weights and both of Adam's moments, the others nothing."""
    if model.topology.data_rank or model.topology.context_rank:
        return 0
    beside = 3 * 4 if model.optimizer is not None else 0
    return sum(weight.numel() * (weight.element_size() + beside) for weight in model.module.parameters())


def write(
    checkpoint: Path,
    parts: Iterable[tuple[str, Captured]],
    group: Any = None,
    beside: Callable[[Path], None] = lambda aside: None,
) -> None:
    """Write what was captured, what `beside` puts next to it, and the manifest; then the checkpoint takes its name.

    Each rank checksums the files that it wrote; `beside` and all else is one rank's. An interrupted write leaves
    nothing of that name. Collective over `group`, and safe in a thread that no one else shares the group with. Raises
    CheckpointWriteError on all ranks.
    """
    aside, roles = _aside(checkpoint), []
    for role, part in parts:
        from tempo_megatron.megatron.checkpointing import capture

        try:
            capture.write(part, aside / role, group)
        except CheckpointException as error:  # no Exception, for reasons of torch's own
            raise CheckpointWriteError(f"{checkpoint}: {error}") from error
        roles.append(role)

    def describe_mine() -> integrity.Files:
        mine = [path for role in roles for path in (aside / role).glob(f"__{dist.get_rank()}_*")]
        return integrity.describe(aside, (path.relative_to(aside).as_posix() for path in mine))

    described = {name: file for files in _on_all(describe_mine, group) for name, file in files.items()}

    def finish() -> None:
        beside(aside)
        rest = [name for name in integrity.files_of(aside) if name not in described]
        integrity.write(aside, described | integrity.describe(aside, rest))
        remove(checkpoint)
        aside.rename(checkpoint)
        hf_files.fsync_path(checkpoint.parent)

    on_first(finish, group)


def on_first(work: Callable[[], None], group: Any = None) -> None:
    """One rank's work, which all wait for. Raises CheckpointWriteError on all ranks when it fails. Collective."""
    _on_all(work if dist.get_rank() == 0 else lambda: None, group)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint if it is there, so that no half of it is ever found under its name.

    Raises OSError where its name cannot be freed. What cannot be deleted after that is warned of, and left to
    `remove_old` and `remove_remains`.
    """
    if checkpoint.is_dir():
        going = checkpoint.with_name(f"{_REMOVED}{time.time_ns()}-{checkpoint.name}")
        checkpoint.rename(going)
        _delete(going)


def remove_old(directory: Path, checkpoints: Iterable[Path]) -> None:
    """Remove checkpoints that are no longer kept, and what earlier removals left in their directory.

    What cannot be removed is warned of: what takes their place is safe, and the next call tries again.
    """
    for left in directory.glob(f"{_REMOVED}*"):
        _delete(left)
    for old in checkpoints:
        try:
            remove(old)
        except OSError as error:
            _warn_of(old, error)


def remove_remains(directory: Path) -> list[Path]:
    """Clear away what interrupted writes and removals left in a directory of checkpoints; returns the former. What
    cannot be deleted is warned of."""
    written = sorted(directory.glob(f"{_ASIDE}*"))
    for path in [*written, *directory.glob(f"{_REMOVED}*")]:
        _delete(path)
    return written


def _delete(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:  # on NFS EBUSY, where another process has a file of it open
        _warn_of(directory, error)


def _warn_of(path: Path, error: OSError) -> None:
    say(f"tempo: warning: {path} cannot be removed ({error}); it is tried again next time")


def checkpoint_problems(checkpoint: Path, role: str | None = None) -> list[str]:
    """What is missing or damaged of a checkpoint, or of one role's files, a line each. Collective: every rank reads a
    share of the files, and all are told the same."""
    listed: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            listed[0] = checkpoint_format.files_of(checkpoint, role) if role else integrity.read(checkpoint)
        except ConversionError as error:
            listed[1] = str(error)
    dist.broadcast_object_list(listed, src=0)
    files, unreadable = listed
    if unreadable:
        return [unreadable]
    share = dict(list(files.items())[dist.get_rank() :: dist.get_world_size()])
    found = _on_all(lambda: integrity.manifest_problems(checkpoint, share, contents=True), None)
    return sorted(line for lines in found for line in lines)


def load_checkpoint(checkpoint: Path, models: Mapping[str, ScoringModel]) -> None:
    """Weights of every model, and optimizer states of those that have one, under the present layout, from a checkpoint
    without `problems`. Collective."""
    for role, model in models.items():
        with model.awake(Kind.weights, Kind.optimizer, changes=True), cpu.accelerator_names():
            loaded = _load(_state(model, is_loading=True), checkpoint, role)
            model.module.load_state_dict(loaded["model"])
            if model.optimizer is not None:
                model.optimizer.load_state_dict(loaded["optimizer"])


def load_weights(checkpoint: Path, role: str, module: Any) -> None:
    """A model's weights alone, from one role of any checkpoint. Collective. Raises ConversionError if it is damaged.

    Transformer Engine's extra states are left as they are: a converted checkpoint has none.
    """
    damaged = checkpoint_problems(checkpoint, role)
    if damaged:
        raise ConversionError("\n".join(damaged))
    with cpu.accelerator_names():
        every = module.sharded_state_dict(metadata=_sharding())
        wanted = {name: part for name, part in every.items() if not name.endswith("_extra_state")}
        unfilled, _ = module.load_state_dict(_load({"model": wanted}, checkpoint, role)["model"], strict=False)
    lost = [name for name in unfilled if not name.endswith("_extra_state")]
    if lost:
        raise KeyError(f"{checkpoint / role} fills none of: {', '.join(lost)}")


def save_weights(checkpoint: Path, role: str, module: Any) -> None:
    """A checkpoint of one model's weights alone, for `load_weights`. Collective."""
    begin(checkpoint, [role])
    with cpu.accelerator_names():
        state = {"model": module.sharded_state_dict(metadata=_sharding())}
        write(checkpoint, [(role, _capture(state, checkpoint, role, copied=False))])


def _state(model: ScoringModel, *, is_loading: bool) -> dict[str, Any]:
    """What a checkpoint has of a model, as megatron-core shards it."""
    weights = model.module.sharded_state_dict(metadata=_sharding())
    if model.optimizer is None:
        return {"model": weights}
    optimizer = model.optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_sharding())
    return {"model": weights, "optimizer": optimizer}


def _sharding() -> dict[str, Any]:
    """megatron-core notes the present process groups in it: each call gets its own."""
    return {"distrib_optim_sharding_type": "fully_reshardable"}


def _capture(state: dict[str, Any], checkpoint: Path, role: str, copied: bool) -> Captured:
    from tempo_megatron.megatron.checkpointing.capture import capture

    return capture(state, _aside(checkpoint) / role, copied=copied)


def _load(wanted: dict[str, Any], checkpoint: Path, role: str) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    with safe_pickle.restricted():
        loaded: dict[str, Any] = dist_checkpointing.load(wanted, str(checkpoint / role))
    return loaded


def _aside(checkpoint: Path) -> Path:
    return checkpoint.with_name(_ASIDE + checkpoint.name)


def _on_all[Result](work: Callable[[], Result], group: Any) -> list[Result]:
    """What `work` gives on each rank. Raises CheckpointWriteError on all ranks when it fails on one."""
    mine: tuple[Result | None, str] = (None, "")
    try:
        mine = (work(), "")
    except Exception:
        mine = (None, traceback.format_exc())
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine, group)
    failed = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(parts) if failure]
    if failed:
        raise CheckpointWriteError("\n".join(failed))
    return [found for found, _ in parts]
