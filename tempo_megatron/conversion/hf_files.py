"""Reads and writes Hugging Face model directories one tensor at a time. A whole model is never in memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.experts import JoinedPart, joined_parts, joins_experts
from tempo_megatron.conversion.source_files import (
    INDEX,
    SINGLE,
    read_json,
    side_files,
    unavailable_reason,
    weight_files,
)

SHARD_BYTES = 5 * 10**9
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SAFETENSORS_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
StoredTensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""By tensor name: the dtype, as the safetensors format spells it, and the shape."""


@dataclass(frozen=True)
class TensorDescription:
    """The shape and dtype of a tensor, known before its values are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_config(directory: Path) -> dict[str, Any]:
    """Return a model directory's config.json. Raises ConversionError where it is missing or no JSON object."""
    path = directory / "config.json"
    if not path.is_file() and not path.is_symlink():
        raise ConversionError(f"{directory}: no config.json here; is it a Hugging Face model directory?")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ConversionError(f"{path}: not a JSON object")
    return config


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


class HfReader:
    """Reads the tensors of a model directory by name. A call maps one tensor from its safetensors file.

    With an index, the index decides which tensors exist and which file each is read from. Without an index, all
    tensors of all files exist. A tensor that joins all experts of a layer counts as the tensors of each expert, and a
    call reads the part of one expert.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.descriptions: dict[str, TensorDescription] = {}
        """Shape and dtype of every tensor."""
        self.files: dict[str, Path] = {}
        """The file of every tensor."""
        self._joined: dict[str, JoinedPart] = {}
        self.unassigned: dict[str, Path] = {}
        """The file of every stored tensor that the index does not name."""
        weights = weight_files(directory)
        self.problems = weights.problems
        """One line for each problem of the files."""
        self.unreadable: set[str] | None = set() if weights.paths else None
        """The tensors whose absence `problems` explains; None where a problem may explain the absence of any tensor."""
        for file in weights.paths:
            try:
                tensors = _stored_tensors(file)
            except (OSError, SafetensorError) as error:
                self.problems.append(unavailable_reason(file) or f"{file}: missing or damaged: {error}")
                self._mark_unreadable(
                    {name for name, assigned_file in weights.assigned.items() if assigned_file == file}
                )
                continue
            if weights.has_index:
                self._register_assigned(file, tensors, weights.assigned)
            else:
                self._register(file, tensors)

    def __call__(self, name: str) -> Tensor:
        """Return one tensor. Raises ConversionError where the model does not have it."""
        if name not in self.files:
            raise ConversionError(f"{self.directory}: no tensor {name}")
        with safe_open(self.files[name], "pt") as opened:
            if joined := self._joined.get(name):
                part: Tensor = opened.get_slice(joined.stored_name)[joined.expert, joined.rows]
                return part
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def _register_assigned(self, file: Path, tensors: StoredTensors, assigned: Mapping[str, Path]) -> None:
        """Register the tensors of a file that the index assigns to it."""
        expected = {name for name, assigned_file in assigned.items() if assigned_file == file}
        self.unassigned |= dict.fromkeys(tensors.keys() - assigned.keys(), file)
        if missing := expected - tensors.keys():
            self.problems.append(f"{file}: no tensor {format_names(missing)}; {INDEX} says that it is there")
            self._mark_unreadable(missing)
        self._register(file, {name: stored for name, stored in tensors.items() if name in expected})

    def _register(self, file: Path, tensors: StoredTensors) -> None:
        """Register the tensors of a file; note repeated names and unknown dtypes as problems."""
        tensors = self._split_joined(tensors)
        repeated = tensors.keys() & self.files.keys()
        if repeated:
            other_files = format_names({self.files[name].name for name in repeated})
            self.problems.append(
                f"{file}: {format_names(repeated)} is in {other_files} too, and no {INDEX} says which counts"
            )
        unknown = {name for name, (dtype, _) in tensors.items() if dtype not in _DTYPES}
        if unknown:
            dtypes = format_names({tensors[name][0] for name in unknown})
            self.problems.append(f"{file}: {format_names(unknown)} is of dtype {dtypes}; known: {', '.join(_DTYPES)}")
            self._mark_unreadable(unknown)
        for name in tensors.keys() - unknown - repeated:
            dtype, shape = tensors[name]
            self.descriptions[name] = TensorDescription(shape, _DTYPES[dtype])
            self.files[name] = file

    def _split_joined(self, tensors: StoredTensors) -> StoredTensors:
        """Return the tensors with one entry for each expert in place of a tensor that joins all experts."""
        split: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, (dtype, shape) in tensors.items():
            parts = joined_parts(name, shape)
            self._joined |= parts
            split |= {part_name: (dtype, part.shape) for part_name, part in parts.items()}
            if not parts:
                split[name] = (dtype, shape)
        return split

    def _mark_unreadable(self, names: set[str]) -> None:
        """Note that a problem explains the absence of these tensors. An empty set stands for any tensor.

        So does a tensor that joins experts, because its file alone says how many.
        """
        explains_any = not names or self.unreadable is None or any(map(joins_experts, names))
        self.unreadable = None if explains_any else (self.unreadable or set()) | names


def _stored_tensors(file: Path) -> StoredTensors:
    """Return dtype and shape of each tensor in a file. Raises OSError or SafetensorError."""
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it cannot be iterated)
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def format_names(names: Collection[str], limit: int = 3) -> str:
    """Return the sorted names joined by commas: the first `limit`, then the number of the others."""
    shown, remaining = sorted(names)[:limit], len(names) - limit
    return ", ".join(shown) + (f" and {remaining} more" if remaining > 0 else "")


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Give a temporary directory to write into, and rename it to `directory` when all is written and synced.

    An error removes what was written.
    """
    temporary = directory.with_name(f".writing-{directory.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        fsync_path(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
        fsync_path(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def copy_side_files(source: Path, directory: Path) -> None:
    """Copy the side files of a model without their permissions: copies of read-only files must be writable."""
    directory.mkdir(exist_ok=True)
    for file in side_files(source):
        copy = directory / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write config.json, unless the present file has the same content. Then its bytes stay as they are."""
    if read_config(directory) != config:
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def with_dtype(config: dict[str, Any], dtypes: Iterable[torch.dtype]) -> dict[str, Any]:
    """Return config.json with the tensors' dtype in place of the one it names. Mixed dtypes leave it unchanged."""
    (*_, dtype) = distinct = set(dtypes)
    name = str(dtype).removeprefix("torch.")
    keys = [key for key in ("dtype", "torch_dtype") if config.get(key) is not None]
    return config if len(distinct) > 1 else {**config, **dict.fromkeys(keys, name)}


def write_tensors(
    directory: Path,
    descriptions: Mapping[str, TensorDescription],
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors files of at most `shard_bytes`, and an index where there are several.

    A tensor larger than that has a file of its own. `tensors` come in the order of `descriptions`, and each is written
    when it comes. The safetensors library would need all tensors of a file at once: several gigabytes of memory.
    """
    shards = _split_into_shards(descriptions, shard_bytes)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    remaining = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(directory / name, {key: descriptions[key] for key in shard}, remaining)
    if next(remaining, None) is not None:
        raise RuntimeError("more tensors than were described")
    if len(shards) > 1:
        total = sum(description.bytes for description in descriptions.values())
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _split_into_shards(descriptions: Mapping[str, TensorDescription], shard_bytes: int) -> list[list[str]]:
    """Return the names of each shard's tensors, in the order of `descriptions`."""
    shards: list[list[str]] = [[]]
    free_bytes = shard_bytes
    for name, description in descriptions.items():
        if shards[-1] and description.bytes > free_bytes:
            shards.append([])
            free_bytes = shard_bytes
        shards[-1].append(name)
        free_bytes -= description.bytes
    return shards


def _write_shard(
    path: Path, descriptions: Mapping[str, TensorDescription], tensors: Iterator[tuple[str, Tensor]]
) -> None:
    """Write one safetensors file: the length of its header (8 bytes), the header (JSON), the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, description in descriptions.items():
        begin, end = end, end + description.bytes
        dtype, shape = _SAFETENSORS_NAMES[description.dtype], list(description.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected, description in descriptions.items():
            name, tensor = next(tensors, ("", torch.empty(0)))
            if name != expected or TensorDescription(tuple(tensor.shape), tensor.dtype) != description:
                raise RuntimeError(
                    f"expected {expected} {description}, got {name!r} {tuple(tensor.shape)} {tensor.dtype}"
                )
            file.write(memoryview(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())


def fsync_path(path: Path) -> None:
    """Force the bytes of a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
