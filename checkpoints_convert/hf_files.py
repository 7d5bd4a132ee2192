"""Hugging Face model directories: read tensor by tensor, written aside and renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from checkpoints_convert.errors import ConversionError

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ConversionError where there is none."""
    path = directory / "config.json"
    if not path.is_file():
        raise ConversionError(f"{directory}: no config.json here; is it a Hugging Face model directory?")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


class Reader:
    """Tensors of a model directory by name, each read from its file when asked for."""

    def __init__(self, directory: Path) -> None:
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise ConversionError(f"{directory}: no safetensors files")
        self._files = {}
        for file in files:
            with safe_open(file, "pt") as opened:
                self._files.update(dict.fromkeys(opened.keys(), file))
        self._directory = directory

    def __call__(self, name: str) -> Tensor:
        """Raises ConversionError where the model lacks the tensor."""
        if name not in self._files:
            raise ConversionError(f"{self._directory}: no tensor {name}")
        with safe_open(self._files[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor


def write(directory: Path, source: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """A model directory like `source` (config, tokenizer, chat template, generation config) with these tensors."""
    aside = directory.with_name(f".writing-{directory.name}")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns(*_WEIGHTS, ".*"))
    weights = {name: tensor.cpu().contiguous() for name, tensor in tensors}
    save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)
