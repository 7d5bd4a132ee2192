"""A checkpoint's files without a process group: what converters read and write, tensor by tensor.

A checkpoint directory has a torch_dist directory a role (`policy/`, `critic/`), `huggingface/` with all that stands
beside the weights of the model that it came from, `checkpoint.json` with the critic's target range, and the `manifest`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.hf_files import TensorDescription
from tempo_megatron.megatron.checkpointing import integrity, safe_pickle

HUGGING_FACE = "huggingface"
_DESCRIPTION = "checkpoint.json"
_BESIDE = (f"{HUGGING_FACE}/", _DESCRIPTION)
_MEGATRON_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


def describe(checkpoint: Path, hf_path: Path, target_range: str) -> None:
    """Write what makes the checkpoint complete without the model that it came from."""
    hf_files.copy_side_files(hf_path, checkpoint / HUGGING_FACE)
    (checkpoint / _DESCRIPTION).write_text(json.dumps({"target_range": target_range}) + "\n")


def read_target_range(checkpoint: Path) -> str:
    """The range of the critic's targets. Raises ConversionError where the checkpoint is not described."""
    path = checkpoint / _DESCRIPTION
    if not path.is_file():
        raise ConversionError(f"{checkpoint}: no {_DESCRIPTION} here; is it a checkpoint?")
    return str(json.loads(path.read_text())["target_range"])


def roles(checkpoint: Path) -> list[str]:
    """The models that the checkpoint holds."""
    return [role for role in ("policy", "critic") if (checkpoint / role).is_dir()]


def files_of(checkpoint: Path, role: str, *beside: str) -> integrity.Files:
    """The manifest of a role's files, and of those whose paths begin like `beside`. Raises ConversionError."""
    listed = integrity.read(checkpoint)
    if f"{role}/{safe_pickle.METADATA}" not in listed:
        raise ConversionError(f"{checkpoint / integrity.NAME}: says nothing of {role}")
    return {name: written for name, written in listed.items() if name.startswith((f"{role}/", *beside))}


def describes_itself(checkpoint: Path) -> bool:
    """Whether what a checkpoint says of its models, `huggingface/` and the roles' metadata, is as it was written."""
    try:
        listed = integrity.read(checkpoint)
        files = {
            name: written
            for name, written in listed.items()
            if name.startswith(_BESIDE) or name.endswith(f"/{safe_pickle.METADATA}")
        }
        return not integrity.manifest_problems(checkpoint, files, contents=True)
    except (ConversionError, OSError):
        return False


class _Files(FileSystemReader):
    """A reader whose metadata was read before: a conversion asks for hundreds of tensors, one by one."""

    def __init__(self, directory: Path, metadata: Metadata) -> None:
        super().__init__(directory)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class CheckpointReader:
    """Tensors of one role of a checkpoint, whole, whatever layout wrote them, each read when asked for.

    `problems` lists files of the role, and of what stands beside it, that are missing or not as they were written: by
    their sizes, or with `contents` by their checksums too, for which all of them are read. Raises ConversionError where
    there is no checkpoint, or its manifest or the role's metadata is damaged.
    """

    def __init__(self, checkpoint: Path, role: str, *, contents: bool = False) -> None:
        self.directory = checkpoint / role
        if role not in roles(checkpoint):
            has = ", ".join(roles(checkpoint)) or "none; is it a checkpoint?"
            raise ConversionError(f"{checkpoint}: no {role} in this checkpoint (models: {has})")
        files = files_of(checkpoint, role, *_BESIDE)
        metadata = f"{role}/{safe_pickle.METADATA}"
        damaged = integrity.manifest_problems(checkpoint, {metadata: files[metadata]}, contents=True)
        if damaged:
            raise ConversionError("\n".join(damaged))
        self._metadata = safe_pickle.read_metadata(self.directory)
        self.descriptions = {
            name: TensorDescription(tuple(item.size), item.properties.dtype)
            for name, item in self._metadata.state_dict_metadata.items()
            if isinstance(item, TensorStorageMetadata)
        }
        self.problems = integrity.manifest_problems(checkpoint, files, contents=contents)

    def __call__(self, name: str) -> Tensor:
        """Safe to call from several threads. Raises ConversionError for a tensor that cannot be read."""
        described = self.descriptions[name]
        tensor = torch.empty(described.shape, dtype=described.dtype)
        _expect_one_process()
        try:
            load({name: tensor}, storage_reader=_Files(self.directory, self._metadata), no_dist=True)
        except CheckpointException as error:
            raise ConversionError(f"{self.directory}: {name}: {_cause(error)}") from error
        return tensor


class _Arriving(DefaultSavePlanner):
    """A planner whose tensors come from an iterator, in the plan's order, when they are to be written."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self._tensors = iter(tensors)

    def resolve_data(self, write_item: Any) -> Tensor:
        name, tensor = next(self._tensors)
        if name != write_item.index.fqn:
            raise RuntimeError(f"expected {write_item.index.fqn}, got {name}")
        return tensor.contiguous()


def write_tensors(
    directory: Path, descriptions: Mapping[str, TensorDescription], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """One role's torch_dist directory, loadable by megatron-core under any TP x PP: a file a tensor.

    `tensors` come in the order of `descriptions`, and each is written when it comes.
    """
    planned = {
        name: torch.empty(described.shape, dtype=described.dtype, device="meta")
        for name, described in descriptions.items()
    }
    writer = FileSystemWriter(directory, single_file_per_rank=False)
    _expect_one_process()
    try:
        save(planned, storage_writer=writer, planner=_Arriving(tensors), no_dist=True)
    except CheckpointException as error:
        raise _cause(error) from error
    (directory / "metadata.json").write_text(json.dumps(_MEGATRON_FORMAT))
    torch.save({}, directory / "common.pt")


def _expect_one_process() -> None:
    """torch warns of it at every load and save, though told so."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _cause(error: CheckpointException) -> BaseException:
    """What really happened: the library wraps each rank's error, torch.save an OSError of the file it writes to."""
    (wrapped, *_) = error.failures.values()
    first = found = wrapped[0]
    while found.__context__ and not isinstance(found, OSError):
        found = found.__context__
    return found if isinstance(found, OSError) else first
