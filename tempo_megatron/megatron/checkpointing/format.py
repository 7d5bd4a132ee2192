"""Reads and writes a checkpoint's files tensor by tensor, without a process group. Converters use it.

A checkpoint directory holds:

- `policy/` and `critic/`: one torch_dist directory per role,
- `huggingface/`: all files except weights of the model that the run started from,
- `checkpoint.json`: the range of the critic's targets,
- `manifest.json`: size and checksum of every file (`integrity`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.hf_files import TensorDescription
from tempo_megatron.conversion.mapping import ExpertSlot, ParameterMapping
from tempo_megatron.megatron.checkpointing import integrity, safe_pickle

HUGGING_FACE = "huggingface"
_DESCRIPTION = "checkpoint.json"
_DESCRIPTION_FILES = (f"{HUGGING_FACE}/", _DESCRIPTION)
_MEGATRON_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


def write_description(checkpoint: Path, hf_path: Path, target_range: str) -> None:
    """Writes the files that make the checkpoint usable without the model that it came from."""
    hf_files.copy_side_files(hf_path, checkpoint / HUGGING_FACE)
    (checkpoint / _DESCRIPTION).write_text(json.dumps({"target_range": target_range}) + "\n")


def read_target_range(checkpoint: Path) -> str:
    """Returns the range of the critic's targets. Raises ConversionError if the checkpoint has no description."""
    path = checkpoint / _DESCRIPTION
    if not path.is_file():
        raise ConversionError(f"{checkpoint}: no {_DESCRIPTION} here; is it a checkpoint?")
    return str(json.loads(path.read_text())["target_range"])


def roles(checkpoint: Path) -> list[str]:
    """Returns the names of the models that the checkpoint holds."""
    return [role for role in ("policy", "critic") if (checkpoint / role).is_dir()]


def role_manifest(checkpoint: Path, role: str, *other_prefixes: str) -> integrity.Manifest:
    """Returns the manifest entries of a role's files, and of paths that start with one of `other_prefixes`.

    Raises ConversionError if the manifest is damaged or does not list the role.
    """
    manifest = integrity.read_manifest(checkpoint)
    if f"{role}/{safe_pickle.METADATA}" not in manifest:
        raise ConversionError(f"{checkpoint / integrity.MANIFEST_NAME}: does not list {role}")
    return {name: record for name, record in manifest.items() if name.startswith((f"{role}/", *other_prefixes))}


def has_intact_description(checkpoint: Path) -> bool:
    """Returns whether `huggingface/`, `checkpoint.json` and the metadata of the roles are as they were written."""
    try:
        manifest = integrity.read_manifest(checkpoint)
        files = {
            name: record
            for name, record in manifest.items()
            if name.startswith(_DESCRIPTION_FILES) or name.endswith(f"/{safe_pickle.METADATA}")
        }
        return not integrity.manifest_problems(checkpoint, files, contents=True)
    except (ConversionError, OSError):
        return False


class _CachedMetadataReader(FileSystemReader):
    """A reader with metadata that is read once, because a conversion reads hundreds of tensors one by one."""

    def __init__(self, directory: Path, metadata: Metadata) -> None:
        super().__init__(directory)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class CheckpointReader:
    """Reads full tensors of one role of a checkpoint by name, whatever layout wrote them.

    `problems` has one line for each missing or changed file of the role and of the checkpoint's description. It
    compares sizes, and with `contents` checksums too, which reads every file. Raises ConversionError if there is no
    checkpoint, or if its manifest or the metadata of the role is damaged.
    """

    def __init__(self, checkpoint: Path, role: str, *, contents: bool = False) -> None:
        self.directory = checkpoint / role
        if role not in roles(checkpoint):
            available = ", ".join(roles(checkpoint)) or "none; is it a checkpoint?"
            raise ConversionError(f"{checkpoint}: no {role} in this checkpoint (models: {available})")
        files = role_manifest(checkpoint, role, *_DESCRIPTION_FILES)
        metadata = f"{role}/{safe_pickle.METADATA}"
        metadata_problems = integrity.manifest_problems(checkpoint, {metadata: files[metadata]}, contents=True)
        if metadata_problems:
            raise ConversionError("\n".join(metadata_problems))
        self._metadata = safe_pickle.read_metadata(self.directory)
        self.descriptions = {
            name: TensorDescription(tuple(item.size), item.properties.dtype)
            for name, item in self._metadata.state_dict_metadata.items()
            if isinstance(item, TensorStorageMetadata)
        }
        self.problems = integrity.manifest_problems(checkpoint, files, contents=contents)

    def __call__(self, name: str, slot: ExpertSlot | None = None) -> Tensor:
        """Returns the tensor of that name, or with `slot` one expert's part of it.

        Several threads may call it. Raises ConversionError if it cannot be read.
        """
        description = self.descriptions[name]
        shape = (1, *description.shape[1:]) if slot else description.shape
        tensor = torch.empty(shape, dtype=description.dtype)
        reader = _CachedMetadataReader(self.directory, self._metadata)
        _ignore_no_dist_warning()
        try:
            load({name: tensor}, storage_reader=reader, planner=_ExpertPlanner(slot) if slot else None, no_dist=True)
        except CheckpointException as error:
            raise ConversionError(f"{self.directory}: {name}: {_cause(error)}") from error
        return tensor[0] if slot else tensor


class _ExpertPlanner(DefaultLoadPlanner):
    """A planner that reads one expert's part, [1, ...], of a tensor [experts, ...]."""

    def __init__(self, slot: ExpertSlot) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._slot = slot

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        ((name, tensor),) = self.state_dict.items()
        stored = self.metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        return LoadPlan(create_read_items_for_chunk_list(name, stored, [_expert_chunk(self._slot, tensor.shape[1:])]))

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        tensor: Tensor = self.state_dict[index.fqn]
        return tensor


class _StreamingPlanner(DefaultSavePlanner):
    """A planner that takes each tensor from an iterator, in the order of the plan, when it is written."""

    def __init__(
        self, parameters: Sequence[tuple[ParameterMapping, torch.dtype]], tensors: Iterable[tuple[str, Tensor]]
    ) -> None:
        super().__init__()
        self._parameters = parameters
        self._names = (mapping.megatron_name for mapping, _ in parameters)
        self._tensors = iter(tensors)

    def create_local_plan(self) -> SavePlan:
        items = [_write_item(mapping, dtype) for mapping, dtype in self._parameters]
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        expected, (name, tensor) = next(self._names), next(self._tensors)
        if name != expected:
            raise RuntimeError(f"expected {expected}, got {name}")
        assert write_item.tensor_data is not None
        return tensor.contiguous().view(write_item.tensor_data.chunk.sizes)


def _write_item(mapping: ParameterMapping, dtype: torch.dtype) -> WriteItem:
    """Returns the plan of one write: a whole tensor, or one expert's part of a tensor."""
    whole = ChunkStorageMetadata(torch.Size([0] * len(mapping.shape)), torch.Size(mapping.shape))
    chunk = _expert_chunk(mapping.slot, mapping.shape) if mapping.slot else whole
    properties = TensorProperties(dtype=dtype)
    return WriteItem(
        MetadataIndex(mapping.stored_name, chunk.offsets),
        WriteItemType.SHARD if mapping.slot else WriteItemType.TENSOR,
        tensor_data=TensorWriteData(chunk, properties, torch.Size(mapping.stored_shape)),
    )


def _expert_chunk(slot: ExpertSlot, shape: Sequence[int]) -> ChunkStorageMetadata:
    """Returns the place of one expert's tensor of this shape in the tensor of all experts."""
    return ChunkStorageMetadata(torch.Size([slot.expert, *([0] * len(shape))]), torch.Size([1, *shape]))


def write_tensors(
    directory: Path,
    parameters: Sequence[tuple[ParameterMapping, torch.dtype]],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Writes one role's torch_dist directory, one file per parameter. megatron-core loads it under any TP x PP.

    `tensors` come by Megatron's names in the order of `parameters`, and each is written as soon as it comes.
    """
    planned = {
        mapping.stored_name: torch.empty(mapping.stored_shape, dtype=dtype, device="meta")
        for mapping, dtype in parameters
    }
    writer = FileSystemWriter(directory, single_file_per_rank=False)
    _ignore_no_dist_warning()
    try:
        save(planned, storage_writer=writer, planner=_StreamingPlanner(parameters, tensors), no_dist=True)
    except CheckpointException as error:
        raise _cause(error) from error
    (directory / "metadata.json").write_text(json.dumps(_MEGATRON_FORMAT))
    torch.save({}, directory / "common.pt")


def _ignore_no_dist_warning() -> None:
    """Hides a warning that torch gives at every load and save, although `no_dist` is set."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _cause(error: CheckpointException) -> BaseException:
    """Returns the error behind a CheckpointException.

    The library wraps the error of each rank, and torch.save wraps an OSError of the file that it writes.
    """
    (wrapped, *_) = error.failures.values()
    first = cause = wrapped[0]
    while cause.__context__ and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause if isinstance(cause, OSError) else first
