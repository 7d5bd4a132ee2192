"""Describes a Hugging Face model directory or a checkpoint in a few lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tempo_megatron.conversion import critics, hf_config, hf_files, source
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.families import architecture_of
from tempo_megatron.conversion.hf_files import TensorDescription
from tempo_megatron.conversion.source_files import side_files
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.megatron.checkpointing.format import HUGGING_FACE


def describe(directory: Path) -> Iterator[str]:
    """Yield the description's lines. Raises ConversionError where the directory is neither model nor checkpoint."""
    if (directory / "config.json").is_file():
        yield f"{directory}: Hugging Face model"
        read = hf_files.HfReader(directory)
        head = critics.find_head(read.descriptions)
        yield from _model(directory)
        described_above = f"{directory / 'config.json'}: "
        problems = source.source_problems(directory, "critic" if head else "policy")
        yield from (f"  problem: {problem}" for problem in problems if not problem.startswith(described_above))
        yield f"  tensors: {_tensors(read.descriptions)}"
        if head:
            target_range = critics.stored_target_range(hf_files.read_config(directory)) or "unknown target range"
            yield f"  value head: {head} ({target_range})"
        return
    roles = checkpoint_format.roles(directory)
    if not roles:
        raise ConversionError(f"{directory}: neither config.json nor a policy or critic; not a model, not a checkpoint")
    yield f"{directory}: checkpoint"
    if not (directory / HUGGING_FACE / "config.json").is_file():
        raise ConversionError(f"{directory}: no {HUGGING_FACE}/config.json: written before checkpoints carried it")
    yield from _model(directory / HUGGING_FACE)
    for role in roles:
        reader = checkpoint_format.CheckpointReader(directory, role)
        yield from (f"  problem: {problem}" for problem in reader.problems)
        stored = reader.descriptions
        weights = {name: tensor for name, tensor in stored.items() if not name.startswith("optimizer.")}
        optimizer = "with" if len(weights) < len(stored) else "without"
        suffix = f", target range {checkpoint_format.read_target_range(directory)}" if role == "critic" else ""
        yield f"  {role}: {_tensors(weights)}, {optimizer} optimizer{suffix}"


def _model(directory: Path) -> Iterator[str]:
    config = hf_files.read_config(directory)
    yield f"  architecture: {architecture_of(config)}"
    try:
        settings = hf_config.backbone_settings(config)
    except ConversionError as error:
        yield from (f"  cannot be converted: {line}" for line in str(error).splitlines())
    else:
        heads = f"{settings.num_attention_heads} heads, {settings.num_query_groups} KV heads"
        sizes = f"{settings.num_layers} layers, hidden {settings.hidden_size}"
        yield f"  {sizes}, {heads}, vocabulary {settings.vocab_size}"
    names = ", ".join(str(file.relative_to(directory)) for file in side_files(directory))
    yield f"  beside the weights: {names}{'' if hf_files.has_tokenizer(directory) else ' (no tokenizer)'}"


def _tensors(descriptions: Mapping[str, TensorDescription]) -> str:
    weights = sum(math.prod(description.shape) for description in descriptions.values())
    dtypes = Counter(str(description.dtype).removeprefix("torch.") for description in descriptions.values())
    size = sum(description.bytes for description in descriptions.values()) / 1e9
    return f"{len(descriptions)}, {weights / 1e6:.1f} M weights, {size:.2f} GB, {', '.join(dtypes)}"
