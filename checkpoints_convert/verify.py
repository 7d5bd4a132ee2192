"""Compares a checkpoint with a Hugging Face directory, bit for bit."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_convert.convert import mapping_mismatches, open_checkpoint
from checkpoints_convert.reference_reader import ReferenceReader, files_beside_weights
from tempo_megatron.config import ParallelConfig
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import Role
from tempo_megatron.conversion.source import HfSource, open_source
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.planning.layout import divisibility_problems


def differences(hf: Path, checkpoint: Path, role: Role, layout: ParallelConfig | None = None) -> list[str]:
    """Return the differences, one a line, by Hugging Face's names; empty where the two are equal.

    Every tensor must be equal bit for bit, after the cast to the checkpoint's dtype, and every side file byte for byte.
    With a layout, as many ranks load the checkpoint and export it again, and that export is compared too. Raises
    ConversionError where one of the two is unreadable, or the layout does not divide the model.
    """
    source = open_source(hf, role)
    if layout:
        _check_layout(layout, source)
    read = checkpoint_format.CheckpointReader(checkpoint, role, contents=True)
    open_checkpoint(checkpoint, role, read)
    file_differences = _side_file_differences(hf, checkpoint / checkpoint_format.HUGGING_FACE)
    if mismatches := list(mapping_mismatches(read, source.mappings)):
        return mismatches + file_differences

    def checkpoint_tensors() -> Iterator[tuple[str, Tensor]]:
        for mapping in source.mappings:
            yield from zip(mapping.hf_names, mapping.to_hf(read(mapping.stored_name, mapping.slot)), strict=True)

    tensor_differences = list(compare_tensors(hf, source, checkpoint_tensors()))
    layout_differences = _differences_under(layout, hf, checkpoint, role) if layout else []
    return tensor_differences + file_differences + layout_differences


def compare_tensors(hf: Path, source: HfSource, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """Yield a line for each tensor that differs from the directory's, and for each that is missing in `tensors`."""
    read = ReferenceReader(hf)
    missing = {name for name in read.names if not source.ignores(name)}
    for name, tensor in tensors:
        missing.discard(name)
        expected = read(name).to(tensor.dtype)
        tensor = tensor.cpu()
        if not torch.equal(expected, tensor):
            differs = expected != tensor
            largest = float((expected.double() - tensor.double()).abs().max())
            yield f"{name}: {int(differs.sum())} of {differs.numel()} elements differ, by at most {largest:.3g}"
    yield from (f"{name}: missing in the checkpoint" for name in sorted(missing))


def _check_layout(layout: ParallelConfig, source: HfSource) -> None:
    """Raise ConversionError for a layout that does not divide the model, before any rank starts."""
    if problems := list(divisibility_problems(layout, source.settings)):
        raise ConversionError("\n".join(line.removeprefix("parallel.") for line in problems))


def _differences_under(layout: ParallelConfig, hf: Path, checkpoint: Path, role: Role) -> list[str]:
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    expert = layout.expert_model_parallel_size
    rank_count = pipeline * math.lcm(tensor, expert)  # The fewest ranks that both TP and EP divide in a stage.
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "differences.json"
        ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={rank_count}"]
        sizes = (tensor, pipeline, expert)
        arguments = [str(part) for part in (hf.absolute(), checkpoint.absolute(), role, *sizes, out)]
        subprocess.run([*ranks, "-m", "checkpoints_convert.layout_rank", *arguments], check=False)
        if not out.is_file():
            raise ConversionError(
                f"{checkpoint}: TP {tensor} x PP {pipeline} x EP {expert} did not load; the ranks say why above"
            )
        rank_differences: list[str] = json.loads(out.read_text())
        return rank_differences


def _side_file_differences(hf: Path, copies: Path) -> list[str]:
    return [
        f"{name}: differs or is missing in the checkpoint"
        for name, file in sorted(files_beside_weights(hf).items())
        if not (copies / name).is_file() or (copies / name).read_bytes() != file.read_bytes()
    ]
