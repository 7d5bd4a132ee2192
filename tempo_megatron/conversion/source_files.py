"""Decides which files of a Hugging Face model directory are read: weight files, and side files such as tokenizers."""

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
NESTED_DIRECTORY_MARKERS = ("config.json", "manifest.json", "config.yaml")
"""A folder that holds one of these is a model, a checkpoint or a run of its own, and no part of the model around it."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a model, in the order in which they are read."""

    paths: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each problem."""
    assigned: dict[str, Path] = field(default_factory=dict)
    """The file of each tensor, by the index; empty without an index."""
    has_index: bool = False


def weight_files(directory: Path) -> WeightFiles:
    """Return the files that the index names, or all safetensors files of a directory without an index."""
    if not os.path.lexists(directory / INDEX):
        paths = sorted(directory.glob("*.safetensors"))
        other_files = ", ".join(sorted(path.name for path in directory.glob("*.bin"))) or "no *.bin files either"
        return WeightFiles(paths, [] if paths else [f"{directory}: no safetensors files ({other_files})"])
    try:
        assigned = {name: directory / file for name, file in _weight_map(directory / INDEX).items()}
    except ConversionError as error:
        return WeightFiles(problems=[str(error)], has_index=True)
    paths, problems = sorted({*assigned.values()}), []
    if os.path.lexists(directory / SINGLE) and paths != [directory / SINGLE]:
        problems.append(f"{directory}: has both {SINGLE} and the files that {INDEX} names; remove one of them")
    return WeightFiles(paths, problems, assigned, has_index=True)


def _weight_map(path: Path) -> dict[str, str]:
    """Return the file name of each tensor, as the index has it. Raises ConversionError for an unusable index."""
    index = read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ConversionError(f"{path}: weight_map does not name the file of each tensor")
    return names


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ConversionError where it cannot be read or is no JSON."""
    if reason := unavailable_reason(path):
        raise ConversionError(reason)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not JSON: {error}") from None


def unavailable_reason(path: Path) -> str:
    """Return why the content of a file is not here: a broken link, or a git-LFS pointer. Empty for other files."""
    if path.is_symlink() and not path.exists():
        return f"{path}: a broken link to {path.readlink()}"
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return f"{path}: a git-LFS pointer in place of the file; run `git lfs pull` there"
    return ""


def side_files(directory: Path) -> list[Path]:
    """Return all files but weights, in folders too: config, tokenizer, chat templates, generation config, license.

    Hidden files are excluded, and so are folders that are models, checkpoints or runs of their own. Links are followed.
    Broken links and folders that cannot be read are included, so that the caller can report them.
    """
    files: list[Path] = []
    walk = directory.walk(follow_symlinks=True, on_error=lambda error: files.append(Path(error.filename)))
    for folder, folders, names in walk:
        folders[:] = [name for name in folders if _belongs(folder / name)]
        files += [folder / name for name in names if _is_side_file(folder / name)]
    return sorted(files)


def side_file_problems(directory: Path) -> list[str]:
    """Return why side files cannot be copied, one a line."""
    problems = []
    for path in side_files(directory):
        if reason := unavailable_reason(path):
            problems.append(reason)
        elif not os.access(path, os.R_OK):
            problems.append(f"{path}: this user has no permission to read it")
    return problems


def _belongs(folder: Path) -> bool:
    """Return whether a folder's files are part of the model. A link to a parent folder is not: it would never end."""
    nested = any((folder / marker).exists() for marker in NESTED_DIRECTORY_MARKERS)
    return not folder.name.startswith(".") and not nested and folder.resolve() not in map(Path.resolve, folder.parents)


def _is_side_file(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and not path.name.endswith(WEIGHT_SUFFIXES) and (path.is_file() or not path.exists())
