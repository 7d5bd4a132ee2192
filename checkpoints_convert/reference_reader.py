"""Reads a model directory as transformers does: the reference that `verify` compares with.

It shares no code with the converters' own reader, so that a fault in that reader shows as a difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from tempo_megatron.conversion.source_files import NESTED_DIRECTORY_MARKERS, WEIGHT_SUFFIXES

_JOINED_EXPERTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


class ReferenceReader:
    """Reads tensors by name.

    They come from model.safetensors where it exists; else from the files that the index names; else from all
    safetensors files. `names` holds the names of all tensors. A tensor that joins all experts of a layer counts as the
    tensors of each expert.
    """

    def __init__(self, directory: Path) -> None:
        if (directory / SAFE_WEIGHTS_NAME).is_file():
            self._files = _contents(directory / SAFE_WEIGHTS_NAME)
        elif (directory / SAFE_WEIGHTS_INDEX_NAME).is_file():
            index = json.loads((directory / SAFE_WEIGHTS_INDEX_NAME).read_bytes())
            self._files = {name: directory / file for name, file in index["weight_map"].items()}
        else:
            self._files = {}
            for file in directory.glob("*.safetensors"):
                self._files |= _contents(file)
        self._experts: dict[str, tuple[str, int, int, int]] = {}
        for name in [name for name in self._files if name.endswith(_JOINED_EXPERTS)]:
            self._experts |= self._parts_of_experts(name)
        joined = {name for name, *_ in self._experts.values()}
        self.names = frozenset(self._files.keys() - joined | self._experts.keys())

    def __call__(self, name: str) -> Tensor:
        if name in self._experts:
            joined, expert, index, count = self._experts[name]
            with safe_open(self._files[joined], "pt") as opened:
                part: Tensor = opened.get_slice(joined)[expert].chunk(count)[index]
                return part
        with safe_open(self._files[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def _parts_of_experts(self, name: str) -> dict[str, tuple[str, int, int, int]]:
        """Return by each expert's own name: the stored name, the expert, and which of how many parts of its rows."""
        with safe_open(self._files[name], "pt") as opened:
            experts = opened.get_slice(name).get_shape()[0]
        prefix, _, kind = name.rpartition(".")
        projections = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else ["down_proj"]
        return {
            f"{prefix}.{expert}.{projection}.weight": (name, expert, index, len(projections))
            for expert in range(experts)
            for index, projection in enumerate(projections)
        }


def _contents(file: Path) -> dict[str, Path]:
    with safe_open(file, "pt") as opened:
        return dict.fromkeys(opened.keys(), file)


def files_beside_weights(directory: Path) -> dict[str, Path]:
    """Return every file that is neither hidden nor weights, by its path in the directory.

    Folders that are a model, a checkpoint or a run of their own are excluded.
    """
    files: dict[str, Path] = {}
    for path in directory.iterdir():
        if path.name[0] == ".":
            continue
        if not path.is_dir():
            files |= {} if path.name.endswith(WEIGHT_SUFFIXES) else {path.name: path}
        elif path.resolve() not in map(Path.resolve, path.parents) and not {*os.listdir(path)} & {
            *NESTED_DIRECTORY_MARKERS
        }:
            files |= {f"{path.name}/{name}": file for name, file in files_beside_weights(path).items()}
    return files
