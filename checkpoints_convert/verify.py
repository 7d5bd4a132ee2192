"""Does a checkpoint hold exactly what a Hugging Face directory holds?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_convert import hf_files
from checkpoints_convert.convert import open_checkpoint, open_source
from checkpoints_convert.errors import ConversionError
from checkpoints_convert.mapping import Role
from tempo_megatron.megatron import checkpoint_files


def differences(hf: Path, checkpoint: Path, role: Role) -> list[str]:
    """What differs, a line each, by Hugging Face's name; empty when every tensor is equal bit for bit, after the cast
    to the checkpoint's dtype, and every side file byte for byte. Raises ConversionError where either is unreadable."""
    source = open_source(hf, role)
    read = checkpoint_files.Reader(checkpoint, role, contents=True)
    open_checkpoint(checkpoint, role, read)

    def held() -> Iterator[tuple[str, Tensor]]:
        for entry in source.entries:
            yield from zip(entry.hf_names, entry.to_hf(read(entry.megatron_name)), strict=True)

    return list(compare(source.read, held())) + _side_files(hf, checkpoint / checkpoint_files.HUGGING_FACE)


def differences_under(hf: Path, checkpoint: Path, role: Role, tensor: int, pipeline: int) -> list[str]:
    """The same of what the ranks of a TP x PP layout load from the checkpoint and export again."""
    open_source(hf, role)
    checkpoint_files.Reader(checkpoint, role)
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "differences.json"
        ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={tensor * pipeline}"]
        given = [str(part) for part in (hf.absolute(), checkpoint.absolute(), role, tensor, pipeline, answer)]
        subprocess.run([*ranks, "-m", "checkpoints_convert.layout_rank", *given], check=False)
        if not answer.is_file():
            raise ConversionError(f"{checkpoint}: TP {tensor} x PP {pipeline} did not load; the ranks say why above")
        found: list[str] = json.loads(answer.read_text())
        return found


def compare(read: Callable[[str], Tensor], held: Iterator[tuple[str, Tensor]]) -> Iterator[str]:
    """A line for each tensor that is held with another value than `read` gives."""
    for name, tensor in held:
        expected = read(name).to(tensor.dtype)
        tensor = tensor.cpu()
        if not torch.equal(expected, tensor):
            other = expected != tensor
            largest = float((expected.double() - tensor.double()).abs().max())
            yield f"{name}: {int(other.sum())} of {other.numel()} elements differ, by at most {largest:.3g}"


def _side_files(hf: Path, copies: Path) -> list[str]:
    return [
        f"{file.name}: differs or is missing in the checkpoint"
        for file in hf_files.side_files(hf)
        if not (copies / file.name).is_file() or (copies / file.name).read_bytes() != file.read_bytes()
    ]
