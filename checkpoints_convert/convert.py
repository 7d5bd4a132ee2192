"""Hugging Face directories to checkpoints and back: tensors are read, mapped and written as they come."""

from __future__ import annotations

import itertools
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tempo_megatron.conversion import critics, decoder, hf_config, hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families import family
from tempo_megatron.conversion.hf_files import Description, listed
from tempo_megatron.conversion.mapping import OUTPUT_BIAS, OUTPUT_LAYER, Entry, Role
from tempo_megatron.conversion.source import HfSource, open_source
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing import integrity
from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE

Descriptions = dict[str, Description]
type _Step[Result] = tuple[Entry, Callable[[Entry], Result]]


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
    """A checkpoint of one role from a Hugging Face directory.

    A critic without a value head gets a fresh one from `seed`. Raises ConversionError listing all that is wrong
    before anything is written; whatever fails later leaves no `out`.
    """
    source = open_source(hf, role)
    target_range = _target_range(source, hf, target_range)
    if source.head:
        bias = any(entry.megatron_name == OUTPUT_BIAS for entry in source.entries)
        critics.exported_config(source.config, family(source.config), bias=bias, target_range=target_range)

    def convert(entry: Entry) -> Tensor:
        tensors = [source.read(name) for name in entry.hf_names]
        return entry.to_megatron(*(tensor.to(dtype or tensor.dtype) for tensor in tensors))

    made: Descriptions = {}
    for entry in source.entries:
        kept = dtype or source.read.descriptions[entry.hf_names[0]].dtype
        made[entry.megatron_name] = Description(entry.shape, kept)
    _check_room(out, made)
    steps: list[_Step[Tensor]] = [(entry, convert) for entry in source.entries]
    if role == "critic" and not source.head:
        head = Entry(OUTPUT_LAYER, (), (1, source.entries[-1].shape[0]))
        made[OUTPUT_LAYER] = Description(head.shape, next(iter(made.values())).dtype)
        fresh = critics.fresh_value_head(head.shape[1], seed).to(made[OUTPUT_LAYER].dtype)
        steps.append((head, lambda entry: fresh))
    with hf_files.written_aside(out) as aside:
        (aside / role).mkdir()
        checkpoint_format.write_description(aside, hf, target_range)
        arriving = ((entry.megatron_name, tensor) for entry, tensor in _in_order(steps, workers, "to Megatron"))
        checkpoint_format.write_tensors(aside / role, made, arriving)
        integrity.write_manifest(aside, integrity.checksum_files(aside, integrity.list_files(aside)))


def to_hf(
    checkpoint: Path,
    out: Path,
    *,
    role: Role,
    dtype: torch.dtype | None = None,
    shard_bytes: int = hf_files.SHARD_BYTES,
    workers: int = 2,
) -> None:
    """A Hugging Face directory from one role of any checkpoint, whatever layout wrote it; nothing else is needed.

    Raises ConversionError listing all that is wrong before anything is written; whatever fails later leaves no `out`.
    """
    read = checkpoint_format.CheckpointReader(checkpoint, role, contents=True)
    config, entries = open_checkpoint(checkpoint, role, read)
    made: Descriptions = {}
    for entry in entries:
        kept = dtype or read.descriptions[entry.megatron_name].dtype
        made.update(zip(entry.hf_names, (Description(size, kept) for size in entry.hf_shapes()), strict=True))
    _check_room(out, made)

    def convert(entry: Entry) -> tuple[Tensor, ...]:
        tensor = read(entry.megatron_name)
        return tuple(part.to(dtype or part.dtype) for part in entry.to_hf(tensor))

    def arriving() -> Iterator[tuple[str, Tensor]]:
        for entry, parts in _in_order([(entry, convert) for entry in entries], workers, "to Hugging Face"):
            yield from zip(entry.hf_names, parts, strict=True)

    with hf_files.written_aside(out) as aside:
        hf_files.copy_side_files(checkpoint / HUGGING_FACE, aside)
        hf_files.write_config(aside, hf_files.with_dtype(config, {described.dtype for described in made.values()}))
        hf_files.write_tensors(aside, made, arriving(), shard_bytes)


def open_checkpoint(
    checkpoint: Path, role: Role, read: checkpoint_format.CheckpointReader
) -> tuple[dict[str, Any], list[Entry]]:
    """config.json and the map of what `to_hf` makes of a role. Raises ConversionError listing all that is wrong."""
    config = hf_files.read_config(checkpoint / HUGGING_FACE)
    settings = hf_config.backbone_settings(config)
    if role == "policy":
        entries = decoder.policy(settings)
    else:
        bias = OUTPUT_BIAS in read.descriptions
        entries = decoder.critic(settings, critics.EXPORTED_HEAD, bias)
        target_range = checkpoint_format.read_target_range(checkpoint)
        config = critics.exported_config(config, family(config), bias=bias, target_range=target_range)
    problems = [*read.problems, *unlike(read, entries)]
    if problems:
        raise ConversionError("\n".join(problems))
    return config, entries


def unlike(read: checkpoint_format.CheckpointReader, entries: Sequence[Entry]) -> Iterator[str]:
    """In what a checkpoint's tensors are not those of the map, a line a cause."""
    missing = {entry.megatron_name for entry in entries} - read.descriptions.keys()
    if missing:
        yield f"{read.directory}: no tensor {listed(missing)}"
    others = [
        f"{entry.megatron_name} is {list(described.shape)}, config.json asks for {list(entry.shape)}"
        for entry in entries
        if (described := read.descriptions.get(entry.megatron_name)) and described.shape != entry.shape
    ]
    if others:
        more = f" and {len(others) - 1} more have other shapes too" if others[1:] else ""
        yield f"{read.directory}: {others[0]}{more}"


def _target_range(source: HfSource, directory: Path, given: str | None) -> str:
    stored = critics.stored_target_range(source.config)
    if given and stored and given != stored:
        raise ConversionError(f"{directory}: the critic's config says target range {stored}, --target-range {given}")
    if source.head and not (given or stored):
        ranges = " or ".join(critics.TARGET_RANGES)
        raise ConversionError(f"{directory}: what was {source.head} trained toward? Give --target-range {ranges}")
    return given or stored or critics.TARGET_RANGES[0]


def _check_room(out: Path, descriptions: Descriptions) -> None:
    if out.exists():
        raise ConversionError(f"{out}: exists already; nothing is overwritten")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    needed, free = sum(described.bytes for described in descriptions.values()), shutil.disk_usage(above).free
    if needed > free:
        raise ConversionError(f"{out}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left")


def _in_order[Result](steps: Sequence[_Step[Result]], workers: int, title: str) -> Iterator[tuple[Entry, Result]]:
    """Each entry with what its step makes of it, in order, while `workers` more are being made; with a progress bar."""
    waiting: deque[tuple[Entry, Future[Result]]] = deque()
    coming = iter(steps)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc=title, total=sum(entry.numel for entry, _ in steps), unit=" weights", unit_scale=True) as bar,
    ):
        try:
            while True:
                for entry, make in itertools.islice(coming, workers - len(waiting)):
                    waiting.append((entry, pool.submit(make, entry)))
                if not waiting:
                    return
                entry, future = waiting.popleft()
                yield entry, future.result()
                bar.update(entry.numel)
        finally:
            pool.shutdown(cancel_futures=True)
