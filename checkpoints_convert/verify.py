"""Does a checkpoint hold exactly what a Hugging Face directory holds?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_convert.convert import open_checkpoint, unlike
from checkpoints_convert.plain_reader import PlainReader, files_beside_weights
from tempo_megatron.config import ParallelConfig
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.conversion.source import HfSource, open_source
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.planning.layout import divisibility_problems

RankLayout = tuple[int, int]
"""sizes of tensor and of pipeline parallelism"""


def differences(hf: Path, checkpoint: Path, role: Role, layout: RankLayout | None = None) -> list[str]:
    """What differs, a line each, by Hugging Face's name; empty when every tensor is equal bit for bit, after the cast
    to the checkpoint's dtype, and every side file byte for byte. With a layout, what its ranks load from the checkpoint
    and export again is compared too. Raises ConversionError where either is unreadable or the layout cannot be."""
    source = open_source(hf, role)
    if layout:
        _check(layout, source)
    read = checkpoint_format.CheckpointReader(checkpoint, role, contents=True)
    open_checkpoint(checkpoint, role, read)
    besides = _side_files(hf, checkpoint / checkpoint_format.HUGGING_FACE)
    if other := list(unlike(read, source.entries)):
        return other + besides

    def held() -> Iterator[tuple[str, Tensor]]:
        for entry in source.entries:
            yield from zip(entry.hf_names, entry.to_hf(read(entry.megatron_name)), strict=True)

    whole = list(compare(hf, source, held())) + besides
    return whole + (_differences_under(layout, hf, checkpoint, role) if layout else [])


def compare(hf: Path, source: HfSource, held: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """A line for each tensor that is held with another value than the directory has, and for each that is not held."""
    read = PlainReader(hf)
    missing = {name for name in read.names if not source.ignores(name)}
    for name, tensor in held:
        missing.discard(name)
        expected = read(name).to(tensor.dtype)
        tensor = tensor.cpu()
        if not torch.equal(expected, tensor):
            other = expected != tensor
            largest = float((expected.double() - tensor.double()).abs().max())
            yield f"{name}: {int(other.sum())} of {other.numel()} elements differ, by at most {largest:.3g}"
    yield from (f"{name}: missing in the checkpoint" for name in sorted(missing))


def _check(layout: RankLayout, source: HfSource) -> None:
    """Raises ConversionError for a layout that the model cannot be cut into, before a rank is started."""
    tensor, pipeline = layout
    parallel = ParallelConfig(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
    if problems := list(divisibility_problems(parallel, source.settings)):
        raise ConversionError("\n".join(line.removeprefix("parallel.") for line in problems))


def _differences_under(layout: RankLayout, hf: Path, checkpoint: Path, role: Role) -> list[str]:
    tensor, pipeline = layout
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "differences.json"
        ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={tensor * pipeline}"]
        given = [str(part) for part in (hf.absolute(), checkpoint.absolute(), role, tensor, pipeline, answer)]
        subprocess.run([*ranks, "-m", "checkpoints_convert.layout_rank", *given], check=False)
        if not answer.is_file():
            raise ConversionError(f"{checkpoint}: TP {tensor} x PP {pipeline} did not load; the ranks say why above")
        found: list[str] = json.loads(answer.read_text())
        return found


def _side_files(hf: Path, copies: Path) -> list[str]:
    return [
        f"{name}: differs or is missing in the checkpoint"
        for name, file in sorted(files_beside_weights(hf).items())
        if not (copies / name).is_file() or (copies / name).read_bytes() != file.read_bytes()
    ]
