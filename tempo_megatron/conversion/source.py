"""Checks a Hugging Face model directory. Training, planning, evaluation and converters all call this first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tempo_megatron.conversion import critics, decoder, hf_config, hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families import CRITIC_ENDINGS, architecture_of, family_of
from tempo_megatron.conversion.hf_files import HfReader, format_names
from tempo_megatron.conversion.mapping import BackboneSettings, ParameterMapping, Role
from tempo_megatron.conversion.source_files import INDEX, side_file_problems

_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_RECOMPUTED_BUFFER = "rotary_emb.inv_freq"
"""The ending of buffers that old checkpoints carry. Every loader computes them anew."""


@dataclass(frozen=True)
class HfSource:
    """A Hugging Face directory without problems, and its parameter mappings for one role."""

    config: dict[str, Any]
    settings: BackboneSettings
    context: int
    """The number of tokens that the model supports, `max_position_embeddings`."""
    read: HfReader
    mappings: list[ParameterMapping]
    head: str | None
    """The name of the value head; None for a model without one."""
    ignored_prefixes: tuple[str, ...]
    """Prefixes of tensors that the files may hold and that this role does not use."""

    def ignores(self, name: str) -> bool:
        """Return whether the files may hold this tensor though the role does not use it."""
        return name.startswith(self.ignored_prefixes) or name.endswith(_RECOMPUTED_BUFFER)


def open_source(directory: Path, role: Role) -> HfSource:
    """Return the checked model. Raises ConversionError listing every problem of the directory, one a line."""
    config, problems = hf_files.read_config(directory), side_file_problems(directory)
    read = HfReader(directory)
    problems += read.problems
    try:
        if role == "policy" and architecture_of(config).endswith(CRITIC_ENDINGS):
            raise ConversionError(f"{directory}: {architecture_of(config)} is a critic; use --role critic")
        completed = hf_config.complete_config(config)
        settings = family_of(config).settings(completed)
    except ConversionError as error:
        lines = str(error).replace("config.json: ", f"{directory / 'config.json'}: ").splitlines()
        raise ConversionError("\n".join([*lines, *problems])) from None
    head = critics.find_head(read.descriptions) if role == "critic" else None
    if head:
        mappings = decoder.critic_mappings(settings, head, f"{head}.bias" in read.descriptions)
    else:
        mappings = decoder.policy_mappings(settings) if role == "policy" else decoder.backbone_mappings(settings)
    ignored = ("lm_head.",) if role == "critic" or settings.tied else ()
    source = HfSource(config, settings, completed["max_position_embeddings"], read, mappings, head, ignored)
    problems += _tensor_problems(source)
    if settings.tied and not problems and not _is_tied(read):
        problems.append(f"{directory}: {_OUTPUT} differs from the embedding that config.json ties it to")
    if problems:
        raise ConversionError("\n".join(problems))
    return source


def source_problems(directory: Path, role: Role) -> list[str]:
    """Return the problems of a model directory, one a line."""
    try:
        open_source(directory, role)
    except ConversionError as error:
        return str(error).splitlines()
    return []


def _tensor_problems(source: HfSource) -> Iterator[str]:
    """Yield how the stored tensors differ from the mappings: missing or unknown tensors, shapes, mixed dtypes."""
    read, stored = source.read, source.read.descriptions
    expected = {
        name: shape
        for mapping in source.mappings
        for name, shape in zip(mapping.hf_names, mapping.hf_shapes(), strict=True)
    }
    missing = expected.keys() - stored.keys()
    if read.unreadable is not None and missing - read.unreadable:
        yield f"{read.directory}: no tensor {format_names(missing - read.unreadable)}"
    misshapen = [name for name in expected if name in stored and stored[name].shape != expected[name]]
    if misshapen:
        name = misshapen[0]
        more = f" and {len(misshapen) - 1} more have other shapes too" if misshapen[1:] else ""
        shapes = f"{list(stored[name].shape)}, config.json asks for {list(expected[name])}"
        yield f"{read.files[name]}: {name} is {shapes}{more}"
    mixed = {
        ", ".join(mapping.hf_names)
        for mapping in source.mappings
        if len({stored[name].dtype for name in mapping.hf_names if name in stored}) > 1
    }
    if mixed:
        yield f"{read.directory}: {format_names(mixed)} differ in dtype"
    for names, origin in ((stored, "the map of this architecture"), (read.unassigned, INDEX)):
        unknown = {name for name in names.keys() - expected.keys() if not source.ignores(name)}
        if unknown:
            yield f"{read.directory}: {format_names(unknown)} has no place in {origin}"


def _is_tied(read: HfReader) -> bool:
    """Return whether a tied model's output layer, where the files hold one, equals the embedding."""
    embedding, output = (read.descriptions.get(name) for name in (_EMBEDDING, _OUTPUT))
    return output is None or (output == embedding and torch.equal(read(_OUTPUT), read(_EMBEDDING)))
