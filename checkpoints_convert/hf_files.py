"""Hugging Face model directories: read and written tensor by tensor, never whole in memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints_convert.errors import ConversionError
from checkpoints_convert.mapping import Entry

SHARD_BYTES = 5 * 10**9
_INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_REBUILT = "rotary_emb.inv_freq"
"""buffers that old checkpoints carry and every loader computes anew"""


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
    if not path.is_file():
        raise ConversionError(f"{directory}: no config.json here; is it a Hugging Face model directory?")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ConversionError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConversionError(f"{path}: not a JSON object")
    return config


def side_files(directory: Path) -> list[Path]:
    """What stands beside the weights: config, tokenizer, chat template, generation config, licence."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_WEIGHT_FILES)
    )


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


class Reader:
    """Tensors of a model directory by name, each mapped from its safetensors file when asked for.

    `problems` lists files that are missing or damaged; their tensors are not in `descriptions`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.descriptions: dict[str, Description] = {}
        self.problems: list[str] = []
        self._files: dict[str, Path] = {}
        self._lost: set[str] = set()
        index = self._read_index()
        files = sorted({*directory.glob("*.safetensors"), *(directory / file for file in index.values())})
        if not files and not self.problems:
            others = ", ".join(path.name for path in directory.glob("*.bin")) or "none of another kind either"
            self.problems.append(f"{directory}: no safetensors files ({others})")
        for file in files:
            try:
                self._describe(file)
            except (OSError, SafetensorError) as error:
                self.problems.append(f"{file}: missing or damaged: {error}")
                self._lost |= {name for name, shard in index.items() if directory / shard == file}

    def __call__(self, name: str) -> Tensor:
        """Raises ConversionError where the model lacks the tensor."""
        if name not in self._files:
            raise ConversionError(f"{self.directory}: no tensor {name}")
        with safe_open(self._files[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def check(self, entries: Sequence[Entry], ignored: Sequence[str] = ()) -> list[str]:
        """All that is wrong with the model as one that the map describes, a line each: files that cannot be read,
        tensors that are missing, of another shape or dtype, or that no entry takes and `ignored` does not begin."""
        found = list(self.problems)
        taken = {name for entry in entries for name in entry.hf_names}
        for entry in entries:
            described = [self.descriptions.get(name) for name in entry.hf_names]
            for name, shape, has in zip(entry.hf_names, entry.hf_shapes(), described, strict=True):
                if has is None and name not in self._lost:
                    found.append(f"{self.directory}: no tensor {name}")
                elif has is not None and has.shape != shape:
                    found.append(
                        f"{self._files[name]}: {name} is {list(has.shape)}, config.json asks for {list(shape)}"
                    )
            if len({has.dtype for has in described if has}) > 1:
                found.append(f"{self.directory}: {', '.join(entry.hf_names)} differ in dtype")
        for name in sorted(self.descriptions.keys() - taken):
            if not name.startswith(tuple(ignored)) and not name.endswith(_REBUILT):
                found.append(f"{self._files[name]}: {name} has no place in the map of this architecture")
        return found

    def _read_index(self) -> dict[str, str]:
        path = self.directory / _INDEX
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(path.read_text())["weight_map"])
        except (ValueError, KeyError) as error:
            self.problems.append(f"{path}: no readable weight_map: {error}")
            return {}

    def _describe(self, file: Path) -> None:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open cannot be iterated)
                part = opened.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    self.problems.append(f"{file}: {name} is {part.get_dtype()}, known: {', '.join(_DTYPES)}")
                    self._lost.add(name)
                    continue
                self.descriptions[name] = Description(tuple(part.get_shape()), dtype)
                self._files[name] = file


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
    directory.mkdir(exist_ok=True)
    for file in side_files(source):
        shutil.copy(file, directory)


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
        names = ["model.safetensors"]
    coming = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(directory / name, {key: descriptions[key] for key in shard}, coming)
    if next(coming, None) is not None:
        raise RuntimeError("more tensors than were described")
    if len(shards) > 1:
        total = sum(described.bytes for described in descriptions.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (directory / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


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
