"""Hugging Face models to Megatron checkpoints and back: no GPU, one process, one tensor at a time.

Exit codes: 0 done, 1 `verify` found differences, 2 bad input or a failed write (nothing is left behind).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from checkpoints_convert import convert, inspection, verify
from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.critics import TARGET_RANGES
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE
from tempo_megatron.utils import user

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SHOWN = 20
"""differences that `verify` names; a checkpoint of another model has hundreds"""
_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    user.ensure_name_and_home()
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except (ConversionError, OSError) as error:
        lines = "\n".join(f"  {line}" for line in str(error).splitlines())
        print(f"checkpoints_convert {given.command}: failed, nothing written:\n{lines}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("checkpoints_convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    to_megatron = commands.add_parser("to-megatron", help="a checkpoint from a Hugging Face directory")
    to_megatron.add_argument("--hf", type=Path, required=True, help="directory of the model")
    to_megatron.add_argument("--out", type=Path, required=True, help="checkpoint directory to make")
    to_megatron.add_argument(
        "--target-range",
        choices=TARGET_RANGES,
        help="what a critic with a value head was trained toward; one that this project exported says so itself",
    )
    to_megatron.add_argument("--seed", type=int, default=0, help="of a fresh value head, where the model has none (0)")
    to_megatron.set_defaults(run=_to_megatron)
    to_hf = commands.add_parser("to-hf", help="a Hugging Face directory from any checkpoint")
    to_hf.add_argument("--checkpoint", type=Path, required=True, help="checkpoint directory, converted or of a run")
    to_hf.add_argument("--out", type=Path, required=True, help="model directory to make")
    to_hf.add_argument("--shard-size", type=_size, default=hf_files.SHARD_BYTES, help="e.g. 500MB (5GB)")
    to_hf.set_defaults(run=_to_hf)
    for command in (to_megatron, to_hf):
        command.add_argument("--dtype", choices=_DTYPES, help="cast to it; by default tensors keep theirs")
        command.add_argument("--workers", type=_positive, default=2, help="tensors read and mapped at once (2)")
    check = commands.add_parser("verify", help="is a checkpoint exactly a Hugging Face directory?")
    check.add_argument("--hf", type=Path, required=True, help="directory of the model")
    check.add_argument("--checkpoint", type=Path, required=True, help="checkpoint directory")
    check.add_argument(
        "--tensor-parallel", type=_positive, help="load under this TP, in as many processes, and compare"
    )
    check.add_argument("--pipeline-parallel", type=_positive, help="and under this PP")
    check.set_defaults(run=_verify)
    for command in (to_megatron, to_hf, check):
        command.add_argument("--role", choices=("policy", "critic"), default="policy", help="(policy)")
    inspect = commands.add_parser("inspect", help="what is in a directory")
    inspect.add_argument("directory", type=Path)
    inspect.set_defaults(run=_inspect)
    return parser


def _to_megatron(given: argparse.Namespace) -> int:
    if not hf_files.has_tokenizer(given.hf):
        print(f"warning: {given.hf} has no tokenizer; the checkpoint will carry none", file=sys.stderr)
    convert.to_megatron(
        given.hf,
        given.out,
        role=given.role,
        dtype=_DTYPES.get(given.dtype),
        target_range=given.target_range,
        seed=given.seed,
        workers=given.workers,
    )
    print(given.out)
    return 0


def _to_hf(given: argparse.Namespace) -> int:
    if (given.checkpoint / HUGGING_FACE).is_dir() and not hf_files.has_tokenizer(given.checkpoint / HUGGING_FACE):
        print(f"warning: {given.checkpoint} carries no tokenizer", file=sys.stderr)
    convert.to_hf(
        given.checkpoint,
        given.out,
        role=given.role,
        dtype=_DTYPES.get(given.dtype),
        shard_bytes=given.shard_size,
        workers=given.workers,
    )
    print(given.out)
    return 0


def _verify(given: argparse.Namespace) -> int:
    sizes = (given.tensor_parallel or 1, given.pipeline_parallel or 1)
    layout = sizes if given.tensor_parallel or given.pipeline_parallel else None
    differing = verify.differences(given.hf, given.checkpoint, given.role, layout)
    for line in differing[:_SHOWN]:
        print(line)
    if differing[_SHOWN:]:
        print(f"and {len(differing) - _SHOWN} more")
    print(f"{len(differing)} differences" if differing else "equal, bit for bit")
    return 1 if differing else 0


def _inspect(given: argparse.Namespace) -> int:
    for line in inspection.describe(given.directory):
        print(line)
    return 0


def _size(text: str) -> int:
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    number = text.removesuffix(unit)
    if not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of bytes, or one with {', '.join(_UNITS)}")
    return int(number) * _UNITS.get(unit, 1)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
