"""Writes and loads checkpoints of models. Any TP x PP x DP layout can load them.

Each model has one torch_dist directory with its weights and its optimizer. A checkpoint is written under a temporary
name, each file recorded in its manifest, synced, and renamed. Files are loaded after their checksums have matched.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from tempo_megatron.config import Fp8
from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing import integrity, safe_pickle
from tempo_megatron.megatron.model import is_expert
from tempo_megatron.megatron.offload import StateKind
from tempo_megatron.megatron.trainer import MegatronModel
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)

if TYPE_CHECKING:
    from tempo_megatron.megatron.checkpointing.capture import Captured

_WRITING, _REMOVING = ".writing-", ".removing-"


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written. The message has the traceback of every rank that failed."""


def prepare_directories(checkpoint: Path, roles: Iterable[str]) -> None:
    """Creates the temporary directories of the models that follow. Collective."""

    def make_directories() -> None:
        temporary = _temporary_path(checkpoint)
        shutil.rmtree(temporary, ignore_errors=True)
        for role in roles:
            (temporary / role).mkdir(parents=True)

    run_on_first_rank(make_directories)


def capture_models(
    checkpoint: Path, models: Mapping[str, MegatronModel], *, copied: bool
) -> Iterator[tuple[str, Captured]]:
    """Yields what this rank writes of each model: its weights, and its optimizer if it has one. Collective.

    Of a model that `is_saved_elsewhere` it writes the extra states alone.

    Call `prepare_directories` first. A model is offloaded again when the next one is requested. Its captured state is
    then lost, unless it was `copied` into host memory.
    """
    for role, model in models.items():
        with model.onloaded(StateKind.weights, StateKind.optimizer):
            with cpu.accelerator_names():
                part = _capture(_state(model, is_loading=False), checkpoint, role, copied)
            yield role, part


def host_copy_bytes(model: MegatronModel) -> int:
    """Returns the bytes of host memory that this rank's copies of a model take in `capture_models`.

    The first data-parallel rank copies the weights, and of an optimizer the fp32 weights and both of Adam's moments.
    The other ranks copy nothing. Of an expert, the first of the ranks that hold it copies.
    """
    if model.is_saved_elsewhere:
        return 0
    topology = model.topology
    copies_experts, copies_others = not topology.expert_data_rank, not (topology.data_rank or topology.context_rank)
    optimizer_bytes = 3 * 4 if model.optimizer is not None else 0
    return sum(
        weight.numel() * (weight.element_size() + optimizer_bytes)
        for chunk in model.chunks
        for weight in chunk.parameters()
        if (copies_experts if is_expert(weight) else copies_others)
    )


def write(
    checkpoint: Path,
    parts: Iterable[tuple[str, Captured]],
    group: Any = None,
    add_files: Callable[[Path], None] = lambda directory: None,
) -> None:
    """Writes the captured state, the files that `add_files` creates, and the manifest, then renames the checkpoint.

    Each rank checksums the files that it wrote. The first rank does all other work, `add_files` included. An
    interrupted write leaves nothing under the final name. Collective over `group`; a thread may call it if no other
    thread uses the group. Raises CheckpointWriteError on all ranks.
    """
    temporary, roles = _temporary_path(checkpoint), []
    for role, part in parts:
        from tempo_megatron.megatron.checkpointing import capture

        try:
            capture.write(part, temporary / role, group)
        except CheckpointException as error:  # It is a BaseException and no Exception.
            raise CheckpointWriteError(f"{checkpoint}: {error}") from error
        roles.append(role)

    def checksum_own_files() -> integrity.Manifest:
        paths = [path for role in roles for path in (temporary / role).glob(f"__{dist.get_rank()}_*")]
        return integrity.checksum_files(temporary, (path.relative_to(temporary).as_posix() for path in paths))

    manifest = {name: file for files in _on_all(checksum_own_files, group) for name, file in files.items()}

    def finish() -> None:
        add_files(temporary)
        other_files = [name for name in integrity.list_files(temporary) if name not in manifest]
        integrity.write_manifest(temporary, manifest | integrity.checksum_files(temporary, other_files))
        remove(checkpoint)
        temporary.rename(checkpoint)
        hf_files.fsync_path(checkpoint.parent)

    run_on_first_rank(finish, group)


def run_on_first_rank(work: Callable[[], None], group: Any = None) -> None:
    """Runs `work` on the first rank while the others wait. Collective.

    Raises CheckpointWriteError on all ranks if it fails.
    """
    _on_all(work if dist.get_rank() == 0 else lambda: None, group)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint if it exists. No partly removed checkpoint is ever visible under its name.

    Raises OSError if the checkpoint cannot be renamed. Files that cannot be deleted after that cause a warning, and
    `remove_old` and `remove_remains` try again.
    """
    if checkpoint.is_dir():
        renamed = checkpoint.with_name(f"{_REMOVING}{time.time_ns()}-{checkpoint.name}")
        checkpoint.rename(renamed)
        _delete(renamed)


def remove_old(directory: Path, checkpoints: Iterable[Path]) -> None:
    """Removes checkpoints that are no longer kept, and the remains of earlier removals in their directory.

    A checkpoint that cannot be removed causes a warning, since the newer ones are safe. The next call tries again.
    """
    for remains in directory.glob(f"{_REMOVING}*"):
        _delete(remains)
    for old in checkpoints:
        try:
            remove(old)
        except OSError as error:
            _warn_of(old, error)


def remove_remains(directory: Path) -> list[Path]:
    """Deletes the remains of interrupted writes and removals; returns the paths of those of writes.

    Remains that cannot be deleted cause a warning.
    """
    unfinished_writes = sorted(directory.glob(f"{_WRITING}*"))
    for path in [*unfinished_writes, *directory.glob(f"{_REMOVING}*")]:
        _delete(path)
    return unfinished_writes


def _delete(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:  # NFS reports EBUSY while another process has one of the files open.
        _warn_of(directory, error)


def _warn_of(path: Path, error: OSError) -> None:
    logger.warning(f"{path} cannot be removed ({error}); the next removal tries again")


def checkpoint_problems(checkpoint: Path, role: str | None = None) -> list[str]:
    """Returns one line for each missing or damaged file of a checkpoint, or of one role in it. Collective.

    Each rank reads a share of the files, and all ranks return the same lines.
    """
    manifest_or_error: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            manifest_or_error[0] = (
                checkpoint_format.role_manifest(checkpoint, role) if role else integrity.read_manifest(checkpoint)
            )
        except ConversionError as error:
            manifest_or_error[1] = str(error)
    dist.broadcast_object_list(manifest_or_error, src=0)
    manifest, manifest_error = manifest_or_error
    if manifest_error:
        return [manifest_error]
    share = dict(list(manifest.items())[dist.get_rank() :: dist.get_world_size()])
    problems = _on_all(lambda: integrity.manifest_problems(checkpoint, share, contents=True), None)
    return sorted(line for lines in problems for line in lines)


def load_checkpoint(checkpoint: Path, models: Mapping[str, MegatronModel]) -> None:
    """Loads the weights and optimizer states of all models into the present layout. Collective.

    The checkpoint must have no `checkpoint_problems`.
    """
    for role, model in models.items():
        with model.onloaded(StateKind.weights, StateKind.optimizer, changes=True), cpu.accelerator_names():
            loaded = _load(_state(model, is_loading=True), checkpoint, role)
            for number, chunk in enumerate(model.chunks):
                load_chunk(chunk, loaded["model"][number], strict=not model.is_saved_elsewhere)
            if model.optimizer is not None:
                model.optimizer.load_state_dict(loaded["optimizer"])


def load_chunk(chunk: Any, state: Mapping[str, Any], *, strict: bool = True) -> None:
    """Loads a chunk's weights and extra states. Raises ConversionError for an extra state with unexpected contents.

    Without `strict` a part that `state` lacks stays as it is.
    """
    with safe_pickle.allowed_extra_states():
        chunk.load_state_dict({name: _safe_part(chunk, name, part) for name, part in state.items()}, strict=strict)


def _safe_part(chunk: Any, name: str, part: Any) -> Any:
    """Returns an extra state of Transformer Engine in a new pickle, and any other part as it is.

    A model without delayed scaling needs no state: it gets none from a checkpoint that has one.
    """
    if not _is_extra_state(name) or part is None:
        return part
    if not isinstance(part, torch.Tensor):
        raise ConversionError(f"{name}: an extra state of type {type(part).__name__}; it was not loaded")
    state = torch.Tensor.detach(part)  # A tensor of a checkpoint may have attributes in place of its methods.
    if not state.numel() or not chunk.config.fp8 or chunk.config.fp8_recipe != Fp8.delayed.value:
        return state.new_empty(0)
    from megatron.core.fp8_utils import get_fp8_recipe

    rebuilt = safe_pickle.rebuilt_scaling_state(name, state.cpu().numpy().tobytes(), get_fp8_recipe(chunk.config))
    return torch.frombuffer(bytearray(rebuilt), dtype=torch.uint8) if rebuilt else state.new_empty(0)


def load_weights(checkpoint: Path, role: str, chunks: Sequence[Any]) -> None:
    """Loads a model's weights alone, from one role of any checkpoint. Collective. Raises ConversionError on damage.

    Transformer Engine's extra states stay as they are, because a converted checkpoint has none.
    """
    problems = checkpoint_problems(checkpoint, role)
    if problems:
        raise ConversionError("\n".join(problems))
    with cpu.accelerator_names():
        weights = {
            number: {name: part for name, part in state.items() if not _is_extra_state(name)}
            for number, state in _sharded_weights(chunks).items()
        }
        loaded = _load({"model": weights}, checkpoint, role)["model"]
        missing = [
            name
            for number, chunk in enumerate(chunks)
            for name in chunk.load_state_dict(loaded[number], strict=False).missing_keys
        ]
    missing_weights = [name for name in missing if not _is_extra_state(name)]
    if missing_weights:
        raise KeyError(f"{checkpoint / role} fills none of: {', '.join(missing_weights)}")


def _extra_states(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in state.items() if _is_extra_state(name)}


def _is_extra_state(name: str) -> bool:
    """Returns whether this is a module's extra state, or that of one of its grouped experts, which have numbers."""
    return name.rstrip("0123456789").endswith("._extra_state")


def save_weights(checkpoint: Path, role: str, chunks: Sequence[Any]) -> None:
    """Writes a checkpoint of one model's weights alone, for `load_weights`. Collective."""
    prepare_directories(checkpoint, [role])
    with cpu.accelerator_names():
        state = {"model": _sharded_weights(chunks)}
        write(checkpoint, [(role, _capture(state, checkpoint, role, copied=False))])


def _state(model: MegatronModel, *, is_loading: bool) -> dict[str, Any]:
    """Returns the checkpointed state of a model, as megatron-core shards it."""
    weights = _sharded_weights(model.chunks)
    if model.is_saved_elsewhere:
        return {"model": {number: _extra_states(parts) for number, parts in weights.items()}}
    if model.optimizer is None:
        return {"model": weights}
    optimizer = model.optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_sharding())
    return {"model": weights, "optimizer": optimizer}


def _sharded_weights(chunks: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """Returns the weights of each chunk by the chunk's number. A checkpoint knows them by their global names alone."""
    return {number: chunk.sharded_state_dict(metadata=_sharding()) for number, chunk in enumerate(chunks)}


def _sharding() -> dict[str, Any]:
    """Returns new sharding metadata, because megatron-core stores the present process groups in it."""
    return {"distrib_optim_sharding_type": "fully_reshardable"}


def _capture(state: dict[str, Any], checkpoint: Path, role: str, copied: bool) -> Captured:
    from tempo_megatron.megatron.checkpointing.capture import capture

    return capture(state, _temporary_path(checkpoint) / role, copied=copied)


def _load(state: dict[str, Any], checkpoint: Path, role: str) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    with safe_pickle.restricted():
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(checkpoint / role))
    return loaded


def _temporary_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(_WRITING + checkpoint.name)


def _on_all[Result](work: Callable[[], Result], group: Any) -> list[Result]:
    """Runs `work` on each rank; returns the results of all ranks.

    Raises CheckpointWriteError on all ranks if it fails on one.
    """
    outcome: tuple[Result | None, str] = (None, "")
    try:
        outcome = (work(), "")
    except Exception:
        outcome = (None, traceback.format_exc())
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome, group)
    failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(outcomes) if failure]
    if failures:
        raise CheckpointWriteError("\n".join(failures))
    return [result for result, _ in outcomes]
