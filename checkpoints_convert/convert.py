"""Converts Hugging Face directories to checkpoints and back. Tensors are read, mapped and written one by one."""

from __future__ import annotations

import itertools
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tempo_megatron.conversion import critics, decoder, hf_config, hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families import family_of
from tempo_megatron.conversion.hf_files import TensorDescription, format_names
from tempo_megatron.conversion.mapping import OUTPUT_BIAS, OUTPUT_LAYER, ParameterMapping, Role
from tempo_megatron.conversion.source import HfSource, open_source
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing import integrity
from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE
from tempo_megatron.utils.logs import shows_progress

type _Step[Result] = tuple[ParameterMapping, Callable[[ParameterMapping], Result]]
"""A mapping, and the function that reads its tensors and converts them."""


def to_megatron(
    hf: Path,
    out: Path,
    *,
    role: Role,
    dtype: torch.dtype | None = None,
    target_range: str | None = None,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Convert a Hugging Face directory to a checkpoint of one role.

    A critic without a value head gets a random one from `seed`. Raises ConversionError listing every problem before it
    writes anything. A later failure removes `out`.
    """
    source = open_source(hf, role)
    target_range = _target_range(source, hf, target_range)
    if source.head:
        bias = any(mapping.megatron_name == OUTPUT_BIAS for mapping in source.mappings)
        critics.exported_config(source.config, family_of(source.config), bias=bias, target_range=target_range)

    def convert(mapping: ParameterMapping) -> Tensor:
        tensors = [source.read(name) for name in mapping.hf_names]
        return mapping.to_megatron(*(tensor.to(dtype or tensor.dtype) for tensor in tensors))

    parameters = [
        (mapping, dtype or source.read.descriptions[mapping.hf_names[0]].dtype) for mapping in source.mappings
    ]
    _check_output(out, [TensorDescription(mapping.shape, written_dtype) for mapping, written_dtype in parameters])
    steps: list[_Step[Tensor]] = [(mapping, convert) for mapping in source.mappings]
    if role == "critic" and not source.head:
        head = ParameterMapping(OUTPUT_LAYER, (), (1, source.mappings[-1].shape[0]))
        _, head_dtype = parameters[0]
        parameters.append((head, head_dtype))
        fresh_head = critics.fresh_value_head(head.shape[1], seed).to(head_dtype)
        steps.append((head, lambda mapping: fresh_head))
    with hf_files.atomic_directory(out) as temporary:
        (temporary / role).mkdir()
        checkpoint_format.write_description(temporary, hf, target_range)
        converted = _convert_in_order(steps, workers, "to Megatron")
        tensors = ((mapping.megatron_name, tensor) for mapping, tensor in converted)
        checkpoint_format.write_tensors(temporary / role, parameters, tensors)
        integrity.write_manifest(temporary, integrity.checksum_files(temporary, integrity.list_files(temporary)))


def to_hf(
    checkpoint: Path,
    out: Path,
    *,
    role: Role,
    dtype: torch.dtype | None = None,
    shard_bytes: int = hf_files.SHARD_BYTES,
    workers: int = 2,
) -> None:
    """Convert one role of a checkpoint to a Hugging Face directory. Any parallel layout may have written it.

    The checkpoint is the only input. Raises ConversionError listing every problem before it writes anything. A later
    failure removes `out`.
    """
    read = checkpoint_format.CheckpointReader(checkpoint, role, contents=True)
    config, mappings = open_checkpoint(checkpoint, role, read)
    descriptions: dict[str, TensorDescription] = {}
    for mapping in mappings:
        written_dtype = dtype or read.descriptions[mapping.stored_name].dtype
        for name, shape in zip(mapping.hf_names, mapping.hf_shapes(), strict=True):
            descriptions[name] = TensorDescription(shape, written_dtype)
    _check_output(out, descriptions.values())

    def convert(mapping: ParameterMapping) -> tuple[Tensor, ...]:
        tensor = read(mapping.stored_name, mapping.slot)
        return tuple(hf_tensor.to(dtype or hf_tensor.dtype) for hf_tensor in mapping.to_hf(tensor))

    def hf_tensors() -> Iterator[tuple[str, Tensor]]:
        steps = [(mapping, convert) for mapping in mappings]
        for mapping, tensors in _convert_in_order(steps, workers, "to Hugging Face"):
            yield from zip(mapping.hf_names, tensors, strict=True)

    with hf_files.atomic_directory(out) as temporary:
        hf_files.copy_side_files(checkpoint / HUGGING_FACE, temporary)
        dtypes = {description.dtype for description in descriptions.values()}
        hf_files.write_config(temporary, hf_files.with_dtype(config, dtypes))
        hf_files.write_tensors(temporary, descriptions, hf_tensors(), shard_bytes)


def open_checkpoint(
    checkpoint: Path, role: Role, read: checkpoint_format.CheckpointReader
) -> tuple[dict[str, Any], list[ParameterMapping]]:
    """Return config.json and the mappings with which `to_hf` exports a role.

    Raises ConversionError listing every problem of the checkpoint.
    """
    config = hf_files.read_config(checkpoint / HUGGING_FACE)
    settings = hf_config.backbone_settings(config)
    if role == "policy":
        mappings = decoder.policy_mappings(settings)
    else:
        bias = OUTPUT_BIAS in read.descriptions
        mappings = decoder.critic_mappings(settings, critics.EXPORTED_HEAD, bias)
        target_range = checkpoint_format.read_target_range(checkpoint)
        config = critics.exported_config(config, family_of(config), bias=bias, target_range=target_range)
    problems = [*read.problems, *mapping_mismatches(read, mappings)]
    if problems:
        raise ConversionError("\n".join(problems))
    return config, mappings


def mapping_mismatches(read: checkpoint_format.CheckpointReader, mappings: Sequence[ParameterMapping]) -> Iterator[str]:
    """Yield a line for the tensors that a checkpoint lacks, and one for those that have another shape than the map."""
    expected_shapes = {mapping.stored_name: mapping.stored_shape for mapping in mappings}
    missing = expected_shapes.keys() - read.descriptions.keys()
    if missing:
        yield f"{read.directory}: no tensor {format_names(missing)}"
    misshapen = [
        f"{name} is {list(stored.shape)}, config.json asks for {list(shape)}"
        for name, shape in expected_shapes.items()
        if (stored := read.descriptions.get(name)) and stored.shape != shape
    ]
    if misshapen:
        more = f" and {len(misshapen) - 1} more have other shapes too" if misshapen[1:] else ""
        yield f"{read.directory}: {misshapen[0]}{more}"


def _target_range(source: HfSource, directory: Path, requested: str | None) -> str:
    """Return the target range to write. Raises ConversionError where it is unknown, or differs from the config's."""
    stored = critics.stored_target_range(source.config)
    if requested and stored and requested != stored:
        raise ConversionError(
            f"{directory}: the critic's config says target range {stored}, --target-range {requested}"
        )
    if source.head and not (requested or stored):
        ranges = " or ".join(critics.TARGET_RANGES)
        raise ConversionError(f"{directory}: what was {source.head} trained toward? Give --target-range {ranges}")
    return requested or stored or critics.TARGET_RANGES[0]


def _check_output(out: Path, descriptions: Collection[TensorDescription]) -> None:
    """Raise ConversionError where `out` exists or its disk is too small."""
    if out.exists():
        raise ConversionError(f"{out}: exists already; nothing is overwritten")
    parent = next(parent for parent in out.absolute().parents if parent.exists())
    needed = sum(description.bytes for description in descriptions)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ConversionError(f"{out}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left")


def _convert_in_order[Result](
    steps: Sequence[_Step[Result]], workers: int, title: str
) -> Iterator[tuple[ParameterMapping, Result]]:
    """Yield each mapping with its converted tensors, in order, while `workers` threads convert the next ones.

    A progress bar shows the converted weights.
    """
    pending: deque[tuple[ParameterMapping, Future[Result]]] = deque()
    remaining, weights = iter(steps), sum(mapping.numel for mapping, _ in steps)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc=title, total=weights, unit=" weights", unit_scale=True, disable=not shows_progress()) as bar,
    ):
        try:
            while True:
                for mapping, convert in itertools.islice(remaining, workers - len(pending)):
                    pending.append((mapping, pool.submit(convert, mapping)))
                if not pending:
                    return
                mapping, future = pending.popleft()
                yield mapping, future.result()
                bar.update(mapping.numel)
        finally:
            pool.shutdown(cancel_futures=True)
