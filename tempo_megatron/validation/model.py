"""Checks of a run's model: its directory, the checkpoints to start from, the parallel layout, and FP8."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from math import isclose
from pathlib import Path
from typing import Any

import torch

from tempo_megatron.config import Config, CriticTraining, Fp8, Precision, RolloutPrecision
from tempo_megatron.conversion import hf_config, hf_files
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.conversion.rope import YarnRope
from tempo_megatron.conversion.source import open_source
from tempo_megatron.data.questions import Questions
from tempo_megatron.data.vocabulary import answer_token_ids, end_token_problems, token_problems
from tempo_megatron.megatron.checkpointing import format as checkpoint_format
from tempo_megatron.planning.layout import (
    chunk_problems,
    divisibility_problems,
    edge_problems,
    expert_group_problems,
    expert_setting_problems,
    replica_problems,
    window_problems,
)
from tempo_megatron.run_dir.layout import as_saved, saved_model
from tempo_megatron.validation.experts import expert_training_problems, generator_problems
from tempo_megatron.validation.numerics import numerics_problems


def model_problems(config: Config) -> Iterator[str]:
    """Yield a line for each problem of the model and its parallel layout."""
    yield from _directory_problems(config)
    yield from _layout_problems(config)


def _directory_problems(config: Config) -> Iterator[str]:
    if not config.model.hf_path:
        return
    saved = saved_model(Path(config.run_dir)) if config.run_dir else None
    try:
        settings, context = _read_description(saved) if saved else _read_model(Path(config.model.hf_path))
    except ConversionError as error:
        yield from (f"model.hf_path: {line}" for line in str(error).splitlines())
        return
    if saved:  # the run resumes from its own weights, and what it started from may be gone
        yield from _resume_problems(config, settings)
    else:
        yield from _start_problems(config, settings)
    yield from expert_setting_problems(config, settings)
    for rope in settings.ropes:
        if isinstance(rope, YarnRope) and not isclose(rope.attention_scale, rope.default_attention_factor**2):
            yield (
                f"model.hf_path: attention_factor={rope.attention_factor}: vLLM does not read it and generates with "
                f"{rope.default_attention_factor:.6g}"
            )
    yield from (f"model.hf_path: {problem}" for problem in generator_problems(settings))
    tokens = config.data.max_prompt_tokens + config.generation.max_response_tokens
    if tokens > context:
        yield f"data.max_prompt_tokens + generation.max_response_tokens: {tokens}, the model's context is {context}"
    yield from divisibility_problems(config.parallel, settings)
    yield from window_problems(config.parallel, settings)
    yield from replica_problems(config, settings)
    yield from _fp8_problems(config, settings)
    yield from numerics_problems(config, settings)
    yield from expert_training_problems(config, settings)
    if not torch.cuda.is_available():
        if config.model.precision is not Precision.fp32:
            yield f"model.precision: {config.model.precision.value} needs a GPU; this machine has none, use fp32"
        if config.generation.precision is RolloutPrecision.fp8:
            yield "generation.precision: fp8 needs a GPU; this machine has none, use same"
    elif config.generation.precision is RolloutPrecision.fp8 and config.model.precision is Precision.fp32:
        yield "generation.precision: fp8 goes with model.precision bf16; vLLM quantizes no fp32 weights"


def _read_model(directory: Path) -> tuple[BackboneSettings, int]:
    """Return the settings and the context, in tokens, of a model directory. Raises ConversionError if it is invalid."""
    source = open_source(directory, "policy")
    return source.settings, source.context


def _read_description(directory: Path) -> tuple[BackboneSettings, int]:
    """Return the same for a directory without weights, such as a checkpoint contains."""
    config = hf_files.read_config(directory)
    return hf_config.backbone_settings(config), hf_config.complete_config(config)["max_position_embeddings"]


def vocabulary_problems(config: Config, tokenizer: Any, questions: Questions) -> Iterator[str]:
    """Yield a line where model and tokenizer disagree on the tokens of prompts, of warm-start answers or of the end."""
    try:
        vocab_size = hf_config.backbone_settings(hf_files.read_config(Path(as_saved(config).model.hf_path))).vocab_size
    except ConversionError:  # `model_problems` names it
        return
    ends = list(end_token_problems(config.data, tokenizer, vocab_size))
    yield from (f"model.hf_path: {problem}" for problem in ends)
    for stream, prompt_set in questions.sets.items():
        prompts = {prompt.id: prompt.token_ids for prompt in prompt_set.prompts}
        yield from (f"data.{stream}: {problem}" for problem in token_problems(prompts, tokenizer, vocab_size))
    if not ends:
        taught = {prompt.id: answer_token_ids(prompt, tokenizer) for prompt in questions.sets["warm_start"].prompts}
        answers = token_problems(taught, tokenizer, vocab_size)
        yield from (f"data.warm_start: answers of {problem}" for problem in answers)


def _start_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each problem of the checkpoints that policy and critic start from."""
    for role, start in (("policy", config.policy.checkpoint), ("critic", config.critic.checkpoint)):
        if not start or (role == "critic" and config.critic.training is CriticTraining.none):
            continue
        key, directory = f"{role}.checkpoint", Path(start)
        try:
            yield from (f"{key}: {problem}" for problem in checkpoint_format.CheckpointReader(directory, role).problems)
            differing = _differing_settings(directory / checkpoint_format.HUGGING_FACE, settings)
            checkpoint_format.read_target_range(directory)
        except ConversionError as error:
            yield from (f"{key}: {line}" for line in str(error).splitlines())
            continue
        if role == "critic":
            differing.discard("tied")
        if differing:
            yield f"{key}: {start} is another model than model.hf_path: {', '.join(sorted(differing))} differ"
        if role == "critic" and config.stages.warm_start.steps:
            yield f"{key}: a warm start would replace it; set stages.warm_start.steps to 0"


def _resume_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line if `model.hf_path` describes another model than the run's checkpoints."""
    with contextlib.suppress(ConversionError):  # the directory may be gone
        differing = _differing_settings(Path(config.model.hf_path), settings)
        if differing:
            problem = f"{config.model.hf_path} is another model than that of run_dir {config.run_dir}"
            yield f"model.hf_path: {problem}: {', '.join(sorted(differing))} differ; name that one, or another run_dir"


def _differing_settings(model: Path, settings: BackboneSettings) -> set[str]:
    """Return the names of settings in which a model directory differs. Raises ConversionError."""
    other = hf_config.backbone_settings(hf_files.read_config(model))
    return {name for name, value in vars(other).items() if value != getattr(settings, name)}


def _fp8_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each requirement of FP8 that the machine, other settings or the model's shape do not meet."""
    model, parallel = config.model, config.parallel
    yield from edge_problems(config, settings)
    if model.fp8 is Fp8.none:
        return
    if model.precision is not Precision.bf16:
        yield f"model.fp8: {model.fp8.value} needs model.precision bf16"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        yield f"model.fp8: {model.fp8.value} needs an H100 or a later GPU; this machine has none"
    tile = 128 if model.fp8 is Fp8.blockwise else 16
    heads = settings.num_attention_heads * settings.kv_channels
    widths = {"hidden size": settings.hidden_size}
    shared = {"attention channels": heads}
    if settings.experts:
        widths["channels of an expert"] = settings.experts.ffn_hidden_size
    if not all(settings.sparse_layers):
        shared["MLP channels"] = settings.ffn_hidden_size
    widths |= {f"{name} a rank": size // max(1, parallel.tensor_model_parallel_size) for name, size in shared.items()}
    for name, width in widths.items():
        if width % tile:
            yield f"model.fp8: {model.fp8.value} needs multiples of {tile}; the model's {name} is {width}"


def _layout_problems(config: Config) -> Iterator[str]:
    parallel = config.parallel
    world = int(os.environ.get("WORLD_SIZE", parallel.processes_per_node))
    model_size = (
        parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    )
    if model_size > 0 and world % model_size:
        yield f"parallel: {world} processes cannot be cut into TP x PP x CP = {model_size}"
    elif model_size > 0:
        yield from expert_group_problems(parallel, world)
    yield from chunk_problems(parallel)
    longest = config.data.max_prompt_tokens + config.generation.max_response_tokens
    for role, budget in (("policy", config.policy.micro_batch_tokens), ("critic", config.critic.micro_batch_tokens)):
        if budget and budget < longest:
            yield (
                f"{role}.micro_batch_tokens: at least data.max_prompt_tokens + generation.max_response_tokens = "
                f"{longest}, or 0 for that; got {budget}"
            )
    replica = config.generation.tensor_parallel_size  # unset, it is that of `parallel`, which is checked above
    if replica > 0 and world % replica:
        yield f"generation.tensor_parallel_size: {replica} does not divide {world} processes"
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield "parallel.sequence_parallel: needs tensor_model_parallel_size above 1"
    if torch.cuda.is_available() and parallel.processes_per_node > torch.cuda.device_count():
        yield f"parallel.processes_per_node: {parallel.processes_per_node}, but {torch.cuda.device_count()} GPUs here"
