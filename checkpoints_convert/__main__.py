"""Hugging Face models to Megatron checkpoints and back: no GPU, one process, one tensor at a time.

Exit codes: 0 success, 1 `verify` found differences, 2 bad input or a failed write (nothing is left behind).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from checkpoints_convert import convert, inspection, verify
from tempo_megatron.config import ParallelConfig
from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE
from tempo_megatron.utils import user
from tempo_megatron.utils.command_line import run_app
from tempo_megatron.utils.logs import get_logger
from tempo_megatron.utils.terminal import refuse

logger = get_logger("checkpoints_convert")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MAXIMUM_DIFFERENCES = 20
"""`verify` prints so many differences: a checkpoint of another model has hundreds."""
_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}

app = typer.Typer(
    help=__doc__,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    no_args_is_help=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    user.ensure_name_and_home()
    return run_app(app, "checkpoints_convert", arguments)


def _byte_count(text: str) -> int:
    """Returns the number of bytes that a text such as 500MB stands for."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    number = text.removesuffix(unit)
    if not number.isdigit() or int(number) < 1:
        problem = f"{text!r}: a number of bytes, or one with {', '.join(_UNITS)}"
        raise typer.BadParameter(problem, param_hint="--shard-size")
    return int(number) * _UNITS.get(unit, 1)


Model = Annotated[Path, typer.Option(help="Directory of the Hugging Face model.", metavar="DIR")]
Checkpoint = Annotated[Path, typer.Option(help="Checkpoint directory, converted or of a run.", metavar="DIR")]
Role = Annotated[Literal["policy", "critic"], typer.Option(help="What the model is.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="Cast tensors to this dtype.", show_default="the dtype of each tensor"),
]
Workers = Annotated[int, typer.Option(help="Tensors that are read and mapped at once.", min=1, metavar="N")]


@app.command()
def to_megatron(
    hf: Model,
    out: Annotated[Path, typer.Option(help="Checkpoint directory to write.", metavar="DIR")],
    target_range: Annotated[
        Literal["zero_one", "minus_one_one"] | None,
        typer.Option(
            help="Targets that a critic with a value head was trained toward. A critic that this project exported "
            "names its own."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of a new value head, where the model has none.", metavar="SEED")] = 0,
    dtype: Dtype = None,
    workers: Workers = 2,
    role: Role = "policy",
) -> int:
    """Write a checkpoint from a Hugging Face directory."""

    def write() -> int:
        if not hf_files.has_tokenizer(hf):
            logger.warning(f"{hf} has no tokenizer; the checkpoint will carry none")
        convert.to_megatron(
            hf,
            out,
            role=role,
            dtype=_DTYPES[dtype] if dtype else None,
            target_range=target_range,
            seed=seed,
            workers=workers,
        )
        print(out)
        return 0

    return _checked("to-megatron", write)


@app.command()
def to_hf(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Model directory to write.", metavar="DIR")],
    shard_size: Annotated[
        str | None,
        typer.Option(help="Largest size of a file, such as 500MB.", metavar="SIZE", show_default="5GB"),
    ] = None,
    dtype: Dtype = None,
    workers: Workers = 2,
    role: Role = "policy",
) -> int:
    """Write a Hugging Face directory from any checkpoint."""
    shard_bytes = _byte_count(shard_size) if shard_size else hf_files.SHARD_BYTES

    def write() -> int:
        if (checkpoint / HUGGING_FACE).is_dir() and not hf_files.has_tokenizer(checkpoint / HUGGING_FACE):
            logger.warning(f"{checkpoint} carries no tokenizer")
        convert.to_hf(
            checkpoint,
            out,
            role=role,
            dtype=_DTYPES[dtype] if dtype else None,
            shard_bytes=shard_bytes,
            workers=workers,
        )
        print(out)
        return 0

    return _checked("to-hf", write)


@app.command("verify")
def verify_(
    hf: Model,
    checkpoint: Checkpoint,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(help="Load under this TP, in as many processes, and compare.", min=1, metavar="T"),
    ] = None,
    pipeline_parallel: Annotated[
        int | None, typer.Option(help="Load under this PP as well.", min=1, metavar="P")
    ] = None,
    expert_parallel: Annotated[
        int | None, typer.Option(help="Load under this EP as well, if the model has experts.", min=1, metavar="E")
    ] = None,
    role: Role = "policy",
) -> int:
    """Check whether a checkpoint is exactly a Hugging Face directory."""

    def compare() -> int:
        sizes = (tensor_parallel, pipeline_parallel, expert_parallel)
        layout = ParallelConfig(
            tensor_model_parallel_size=tensor_parallel or 1,
            pipeline_model_parallel_size=pipeline_parallel or 1,
            expert_model_parallel_size=expert_parallel or 1,
        )
        differences = verify.differences(hf, checkpoint, role, layout if any(sizes) else None)
        for line in differences[:_MAXIMUM_DIFFERENCES]:
            print(line)
        if len(differences) > _MAXIMUM_DIFFERENCES:
            print(f"and {len(differences) - _MAXIMUM_DIFFERENCES} more")
        print(f"{len(differences)} differences" if differences else "equal, bit for bit")
        return 1 if differences else 0

    return _checked("verify", compare)


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(help="Checkpoint or Hugging Face directory.", metavar="DIR")],
) -> int:
    """Describe a directory."""

    def describe() -> int:
        for line in inspection.describe(directory):
            print(line)
        return 0

    return _checked("inspect", describe)


def _checked(command: str, work: Callable[[], int]) -> int:
    """Returns the exit code of the work, or 2 where it refuses its input or cannot write."""
    try:
        return work()
    except (ConversionError, OSError) as error:
        return refuse(f"checkpoints_convert {command}: failed, nothing written", error)


if __name__ == "__main__":
    sys.exit(main())
