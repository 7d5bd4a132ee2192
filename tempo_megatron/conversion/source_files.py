"""Which files of a Hugging Face model directory are read: the one that holds each tensor, and all that stand beside."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tempo_megatron.conversion.errors import ConversionError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".index.json",
)
APART = ("config.json", "manifest.json", "config.yaml")
"""What marks a folder as a model, a checkpoint or a run of its own."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files that are read, in order, and what is wrong with them, a line each. With an index,
    `assigned` is the file of each tensor."""

    paths: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    assigned: dict[str, Path] = field(default_factory=dict)
    has_index: bool = False


def weight_files(directory: Path) -> WeightFiles:
    """The files that an index names, or all safetensors files of a directory that has no index."""
    if not os.path.lexists(directory / INDEX):
        paths = sorted(directory.glob("*.safetensors"))
        others = ", ".join(sorted(path.name for path in directory.glob("*.bin"))) or "none of another kind either"
        return WeightFiles(paths, [] if paths else [f"{directory}: no safetensors files ({others})"])
    try:
        assigned = {name: directory / file for name, file in _weight_map(directory / INDEX).items()}
    except ConversionError as error:
        return WeightFiles(problems=[str(error)], has_index=True)
    paths, problems = sorted({*assigned.values()}), []
    if os.path.lexists(directory / SINGLE) and paths != [directory / SINGLE]:
        problems.append(f"{directory}: {SINGLE} stands beside what {INDEX} names; remove one of them")
    return WeightFiles(paths, problems, assigned, has_index=True)


def _weight_map(path: Path) -> dict[str, str]:
    """The name of the file of each tensor. Raises ConversionError."""
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ConversionError(f"{path}: weight_map does not say which file each tensor is in")
    return names


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ConversionError where it cannot be read or is no JSON."""
    if reason := absence(path):
        raise ConversionError(reason)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not JSON: {error}") from None


def absence(path: Path) -> str:
    """Why what has this name is not the file: a link that leads nowhere, or a pointer in whose place git-LFS puts the
    file. Empty for anything else."""
    if path.is_symlink() and not path.exists():
        return f"{path}: a link to {path.readlink()}, where nothing is"
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return f"{path}: a git-LFS pointer in place of the file; run `git lfs pull` there"
    return ""


def side_files(directory: Path) -> list[Path]:
    """What stands beside the weights, in folders too: config, tokenizer, chat templates, generation config, license.

    Hidden files are left out, and folders that are models, checkpoints or runs of their own. Links count as what they
    lead to. One that leads nowhere is among the files, and so is a folder that cannot be read.
    """
    files: list[Path] = []
    walk = directory.walk(follow_symlinks=True, on_error=lambda error: files.append(Path(error.filename)))
    for folder, folders, names in walk:
        folders[:] = [name for name in folders if _belongs(folder / name)]
        files += [folder / name for name in names if _is_side_file(folder / name)]
    return sorted(files)


def side_file_problems(directory: Path) -> list[str]:
    """Why side files cannot be copied, a line each."""
    problems = []
    for path in side_files(directory):
        if reason := absence(path):
            problems.append(reason)
        elif not os.access(path, os.R_OK):
            problems.append(f"{path}: this user may not read it")
    return problems


def _belongs(folder: Path) -> bool:
    """Whether the files of a folder travel. A link back to a folder above it would never end."""
    apart = any((folder / mark).exists() for mark in APART)
    return not folder.name.startswith(".") and not apart and folder.resolve() not in map(Path.resolve, folder.parents)


def _is_side_file(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and not path.name.endswith(WEIGHT_SUFFIXES) and (path.is_file() or not path.exists())
