"""Hugging Face model directories: read and written tensor by tensor, never whole in memory."""

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
from tempo_megatron.conversion.source_files import INDEX, SINGLE, absence, read_json, side_files, weight_files

SHARD_BYTES = 5 * 10**9
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""dtype, as the safetensors format spells it, and shape, by name"""


@dataclass(frozen=True)
class Description:
    """What a tensor is before it is read: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ConversionError where there is none or it is no JSON object."""
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
    """Tensors of a model directory by name, each mapped from its safetensors file when asked for.

    An index decides which tensors there are and which file each is read from. Of files without an index all is read.
    `files` is where each of the `descriptions` is read; `unassigned` are tensors that an index does not know, with
    their files. `problems` lists what is wrong with files, a line a cause. `lost` are the tensors that these problems
    explain, None where they may explain any.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.descriptions: dict[str, Description] = {}
        self.files: dict[str, Path] = {}
        self.unassigned: dict[str, Path] = {}
        weights = weight_files(directory)
        self.problems = weights.problems
        self.lost: set[str] | None = set() if weights.paths else None
        for file in weights.paths:
            try:
                tensors = _tensors(file)
            except (OSError, SafetensorError) as error:
                self.problems.append(absence(file) or f"{file}: missing or damaged: {error}")
                self._lose({name for name, other in weights.assigned.items() if other == file})
                continue
            if weights.has_index:
                self._take_assigned(file, tensors, weights.assigned)
            else:
                self._take(file, tensors)

    def __call__(self, name: str) -> Tensor:
        """Raises ConversionError where the model lacks the tensor."""
        if name not in self.files:
            raise ConversionError(f"{self.directory}: no tensor {name}")
        with safe_open(self.files[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def _take_assigned(self, file: Path, tensors: Tensors, assigned: Mapping[str, Path]) -> None:
        """Take from a file what the index assigns to it."""
        expected = {name for name, other in assigned.items() if other == file}
        self.unassigned |= dict.fromkeys(tensors.keys() - assigned.keys(), file)
        if missing := expected - tensors.keys():
            self.problems.append(f"{file}: no tensor {listed(missing)}; {INDEX} says that it is there")
            self._lose(missing)
        self._take(file, {name: described for name, described in tensors.items() if name in expected})

    def _take(self, file: Path, tensors: Tensors) -> None:
        repeated = tensors.keys() & self.files.keys()
        if repeated:
            others = listed({self.files[name].name for name in repeated})
            self.problems.append(f"{file}: {listed(repeated)} is in {others} too, and no {INDEX} says which counts")
        unknown = {name for name, (dtype, _) in tensors.items() if dtype not in _DTYPES}
        if unknown:
            dtypes = listed({tensors[name][0] for name in unknown})
            self.problems.append(f"{file}: {listed(unknown)} is of dtype {dtypes}; known: {', '.join(_DTYPES)}")
            self._lose(unknown)
        for name in tensors.keys() - unknown - repeated:
            dtype, shape = tensors[name]
            self.descriptions[name] = Description(shape, _DTYPES[dtype])
            self.files[name] = file

    def _lose(self, names: set[str]) -> None:
        """Note that a problem explains the absence of these tensors; of any, where they have no names."""
        self.lost = self.lost | names if names and self.lost is not None else None


def _tensors(file: Path) -> Tensors:
    """dtype, as the file spells it, and shape of each tensor of a file. Raises OSError or SafetensorError."""
    with safe_open(file, "pt") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it cannot be iterated)
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def listed(names: Collection[str], most: int = 3) -> str:
    """Names in order with commas between them; those beyond `most` are counted."""
    first, more = sorted(names)[:most], len(names) - most
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def written_aside(directory: Path) -> Iterator[Path]:
    """A directory to write into that takes its name only when all is written and synced; an error leaves nothing."""
    aside = directory.with_name(f".writing-{directory.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        sync(aside)
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)
        sync(directory.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def copy_side_files(source: Path, directory: Path) -> None:
    """Copy what stands beside the weights, contents alone: a read-only source must not make read-only copies."""
    directory.mkdir(exist_ok=True)
    for file in side_files(source):
        copy = directory / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Replace config.json where it says something else; where it says the same its bytes stay."""
    if read_config(directory) != config:
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def with_dtype(config: dict[str, Any], dtypes: Iterable[torch.dtype]) -> dict[str, Any]:
    """config.json whose dtype, where it names one, is that of the tensors."""
    (*_, dtype) = kinds = set(dtypes)
    name = str(dtype).removeprefix("torch.")
    keys = [key for key in ("dtype", "torch_dtype") if config.get(key) is not None]
    return config if len(kinds) > 1 else {**config, **dict.fromkeys(keys, name)}


def write_tensors(
    directory: Path,
    descriptions: Mapping[str, Description],
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Safetensors files of at most `shard_bytes` (a larger tensor has its own), with an index where they are several.

    `tensors` come in the order of `descriptions`, and each is written when it comes: the safetensors library takes a
    file's tensors all at once, which for a shard of several gigabytes is more memory than a conversion may need.
    """
    shards = _plan(descriptions, shard_bytes)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    coming = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(directory / name, {key: descriptions[key] for key in shard}, coming)
    if next(coming, None) is not None:
        raise RuntimeError("more tensors than were described")
    if len(shards) > 1:
        total = sum(described.bytes for described in descriptions.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _plan(descriptions: Mapping[str, Description], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, described in descriptions.items():
        if shards[-1] and described.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= described.bytes
    return shards


def _write_shard(path: Path, descriptions: Mapping[str, Description], coming: Iterator[tuple[str, Tensor]]) -> None:
    """One file of the safetensors format: the header's length (8 bytes), the header (JSON), the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, described in descriptions.items():
        begin, end = end, end + described.bytes
        dtype, shape = _DTYPE_NAMES[described.dtype], list(described.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected, described in descriptions.items():
            name, tensor = next(coming, ("", torch.empty(0)))
            if name != expected or Description(tuple(tensor.shape), tensor.dtype) != described:
                raise RuntimeError(
                    f"expected {expected} {described}, got {name!r} {tuple(tensor.shape)} {tensor.dtype}"
                )
            file.write(memoryview(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file's bytes, or a directory's names, to stable storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
