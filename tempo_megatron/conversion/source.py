"""The one judge of a Hugging Face model directory. Training, planning, evaluation and converters ask it first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tempo_megatron.conversion import critics, decoder, hf_config, hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families import CRITICS, architecture_of, family
from tempo_megatron.conversion.hf_files import HfReader, listed
from tempo_megatron.conversion.mapping import BackboneSettings, Entry, Role
from tempo_megatron.conversion.source_files import INDEX, side_file_problems

_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_REBUILT = "rotary_emb.inv_freq"
"""buffers that old checkpoints carry and every loader computes anew"""


@dataclass(frozen=True)
class HfSource:
    """A Hugging Face directory in which nothing is wrong, and its map under a role.

    `context` is the number of tokens that the model is made for. `head` is what it calls its value head, None without
    one. `ignored` begins the names of tensors that may be there and are not read.
    """

    config: dict[str, Any]
    settings: BackboneSettings
    context: int
    read: HfReader
    entries: list[Entry]
    head: str | None
    ignored: tuple[str, ...]

    def ignores(self, name: str) -> bool:
        """Whether a tensor of the files is none of the model's under this role."""
        return name.startswith(self.ignored) or name.endswith(_REBUILT)


def open_source(directory: Path, role: Role) -> HfSource:
    """Raises ConversionError listing all that is wrong with the directory, a line a cause."""
    config, source_problems = hf_files.read_config(directory), side_file_problems(directory)
    read = HfReader(directory)
    source_problems += read.problems
    try:
        if role == "policy" and architecture_of(config).endswith(CRITICS):
            raise ConversionError(f"{directory}: {architecture_of(config)} is a critic; use --role critic")
        completed = hf_config.completed(config)
        settings = family(config).settings(completed)
    except ConversionError as error:
        lines = str(error).replace("config.json: ", f"{directory / 'config.json'}: ").splitlines()
        raise ConversionError("\n".join([*lines, *source_problems])) from None
    head = critics.find_head(read.descriptions) if role == "critic" else None
    if head:
        entries = decoder.critic(settings, head, f"{head}.bias" in read.descriptions)
    else:
        entries = decoder.policy(settings) if role == "policy" else decoder.backbone(settings)
    ignored = ("lm_head.",) if role == "critic" or settings.tied else ()
    source = HfSource(config, settings, completed["max_position_embeddings"], read, entries, head, ignored)
    source_problems += _unlike(source)
    if settings.tied and not source_problems and not _is_tied(read):
        source_problems.append(f"{directory}: {_OUTPUT} differs from the embedding that config.json ties it to")
    if source_problems:
        raise ConversionError("\n".join(source_problems))
    return source


def source_problems(directory: Path, role: Role) -> list[str]:
    """What is wrong with a model directory, a line a cause; empty where nothing is."""
    try:
        open_source(directory, role)
    except ConversionError as error:
        return str(error).splitlines()
    return []


def _unlike(source: HfSource) -> Iterator[str]:
    """In what the tensors are not those of the map: missing, of other shapes or dtypes, or without a place in it."""
    read, entries = source.read, source.entries
    expected = {name: shape for entry in entries for name, shape in zip(entry.hf_names, entry.hf_shapes(), strict=True)}
    described = read.descriptions
    missing = expected.keys() - described.keys()
    if read.lost is not None and missing - read.lost:
        yield f"{read.directory}: no tensor {listed(missing - read.lost)}"
    others = [name for name in expected if name in described and described[name].shape != expected[name]]
    if others:
        name, more = others[0], f" and {len(others) - 1} more have other shapes too" if others[1:] else ""
        has, wanted = list(described[name].shape), list(expected[name])
        yield f"{read.files[name]}: {name} is {has}, config.json asks for {wanted}{more}"
    mixed = {
        ", ".join(entry.hf_names)
        for entry in entries
        if len({described[name].dtype for name in entry.hf_names if name in described}) > 1
    }
    if mixed:
        yield f"{read.directory}: {listed(mixed)} differ in dtype"
    for names, place in ((described, "the map of this architecture"), (read.unassigned, INDEX)):
        strangers = {name for name in names.keys() - expected.keys() if not source.ignores(name)}
        if strangers:
            yield f"{read.directory}: {listed(strangers)} has no place in {place}"


def _is_tied(read: HfReader) -> bool:
    """Whether an output layer that the files have, beside an embedding that serves as one, has the same values."""
    embedding, output = (read.descriptions.get(name) for name in (_EMBEDDING, _OUTPUT))
    return output is None or (output == embedding and torch.equal(read(_OUTPUT), read(_EMBEDDING)))
