"""Whether a run can have its model: the directory that it is read from, checkpoints to start from, ranks to spread it
over, and FP8."""

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
from tempo_megatron.planning.layout import divisibility_problems, replica_problems, window_problems
from tempo_megatron.run_dir.layout import as_saved, saved_model


def model_problems(config: Config) -> Iterator[str]:
    """What is wrong, one line each; nothing when the run can have its model."""
    yield from _model(config)
    yield from _layout(config)


def _model(config: Config) -> Iterator[str]:
    if not config.model.hf_path:
        return
    saved = saved_model(Path(config.run_dir)) if config.run_dir else None
    try:
        settings, context = _described(saved) if saved else _judged(Path(config.model.hf_path))
    except ConversionError as error:
        yield from (f"model.hf_path: {line}" for line in str(error).splitlines())
        return
    if saved:  # the run goes on from its own weights: what it started from may be gone
        yield from _resumed(config, settings)
    else:
        yield from _starts(config, settings)
    for rope in settings.ropes:
        if isinstance(rope, YarnRope) and not isclose(rope.attention_scale, rope.default_attention_factor**2):
            yield (
                f"model.hf_path: attention_factor={rope.attention_factor}: vLLM does not read it and generates with "
                f"{rope.default_attention_factor:.6g}"
            )
    wanted = config.data.max_prompt_tokens + config.generation.max_response_tokens
    if wanted > context:
        yield f"data.max_prompt_tokens + generation.max_response_tokens: {wanted}, the model's context is {context}"
    yield from divisibility_problems(config.parallel, settings)
    yield from window_problems(config.parallel, settings)
    yield from replica_problems(config.generation.tensor_parallel_size, settings)
    yield from _eight_bits(config, settings)
    if not torch.cuda.is_available():
        if config.model.precision is not Precision.fp32:
            yield f"model.precision: {config.model.precision.value} needs a GPU; this machine has none, use fp32"
        if config.generation.precision is RolloutPrecision.fp8:
            yield "generation.precision: fp8 needs a GPU; this machine has none, use same"
    elif config.generation.precision is RolloutPrecision.fp8 and config.model.precision is Precision.fp32:
        yield "generation.precision: fp8 goes with model.precision bf16; vLLM quantizes no fp32 weights"


def _judged(directory: Path) -> tuple[BackboneSettings, int]:
    """The settings of a model directory in which nothing is wrong, and its context in tokens."""
    source = open_source(directory, "policy")
    return source.settings, source.context


def _described(directory: Path) -> tuple[BackboneSettings, int]:
    """The same of a directory without weights, such as a checkpoint has."""
    config = hf_files.read_config(directory)
    return hf_config.backbone_settings(config), hf_config.complete_config(config)["max_position_embeddings"]


def vocabulary_problems(config: Config, tokenizer: Any, questions: Questions) -> Iterator[str]:
    """Where model and tokenizer do not agree on the tokens of prompts, of taught answers and of the end."""
    try:
        vocab_size = hf_config.backbone_settings(hf_files.read_config(Path(as_saved(config).model.hf_path))).vocab_size
    except ConversionError:  # it is said already
        return
    ends = list(end_token_problems(config.data, tokenizer, vocab_size))
    yield from (f"model.hf_path: {problem}" for problem in ends)
    for stream, made in questions.sets.items():
        prompts = {prompt.id: prompt.token_ids for prompt in made.prompts}
        yield from (f"data.{stream}: {problem}" for problem in token_problems(prompts, tokenizer, vocab_size))
    if not ends:
        taught = {prompt.id: answer_token_ids(prompt, tokenizer) for prompt in questions.sets["warm_start"].prompts}
        answers = token_problems(taught, tokenizer, vocab_size)
        yield from (f"data.warm_start: answers of {problem}" for problem in answers)


def _starts(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """The checkpoints that policy and critic start from."""
    for role, start in (("policy", config.policy.checkpoint), ("critic", config.critic.checkpoint)):
        if not start or (role == "critic" and config.critic.training is CriticTraining.none):
            continue
        key, directory = f"{role}.checkpoint", Path(start)
        try:
            yield from (f"{key}: {problem}" for problem in checkpoint_format.CheckpointReader(directory, role).problems)
            other = _unlike(directory / checkpoint_format.HUGGING_FACE, settings)
            checkpoint_format.read_target_range(directory)
        except ConversionError as error:
            yield from (f"{key}: {line}" for line in str(error).splitlines())
            continue
        if role == "critic":
            other.discard("tied")
        if other:
            yield f"{key}: {start} is another model than model.hf_path: {', '.join(sorted(other))} differ"
        if role == "critic" and config.stages.warm_start.steps:
            yield f"{key}: a warm start would replace it; set stages.warm_start.steps to 0"


def _resumed(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """A run goes on with the model of its checkpoints; where `model.hf_path` describes another, it cannot be meant."""
    with contextlib.suppress(ConversionError):  # nothing is described there any more
        other = _unlike(Path(config.model.hf_path), settings)
        if other:
            named = f"{config.model.hf_path} is another model than that of run_dir {config.run_dir}"
            yield f"model.hf_path: {named}: {', '.join(sorted(other))} differ; name that one, or another run_dir"


def _unlike(model: Path, settings: BackboneSettings) -> set[str]:
    """In what a model directory describes another model. Raises ConversionError."""
    described = hf_config.backbone_settings(hf_files.read_config(model))
    return {name for name, value in vars(described).items() if value != getattr(settings, name)}


def _eight_bits(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """What FP8 asks of the machine, the other settings and the model's shape."""
    model, parallel = config.model, config.parallel
    stage = settings.num_layers // max(1, parallel.pipeline_model_parallel_size)
    if model.fp8_edges_in_bf16 and model.fp8 in (Fp8.none, Fp8.delayed):
        yield f"model.fp8_edges_in_bf16: from 0 on, with fp8 tensorwise or blockwise; got {model.fp8_edges_in_bf16}"
    elif model.fp8_edges_in_bf16 > stage:
        yield f"model.fp8_edges_in_bf16: at most the {stage} layers of a pipeline stage, got {model.fp8_edges_in_bf16}"
    if model.fp8 is Fp8.none:
        return
    if model.precision is not Precision.bf16:
        yield f"model.fp8: {model.fp8.value} needs model.precision bf16"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        yield f"model.fp8: {model.fp8.value} needs an H100 or a later GPU; this machine has none"
    tile = 128 if model.fp8 is Fp8.blockwise else 16
    heads = settings.num_attention_heads * settings.kv_channels
    widths = {"hidden size": settings.hidden_size}
    shared = {"attention channels": heads, "MLP channels": settings.ffn_hidden_size}
    widths |= {f"{what} a rank": size // max(1, parallel.tensor_model_parallel_size) for what, size in shared.items()}
    for what, width in widths.items():
        if width % tile:
            yield f"model.fp8: {model.fp8.value} needs multiples of {tile}; the model's {what} is {width}"


def _layout(config: Config) -> Iterator[str]:
    parallel = config.parallel
    world = int(os.environ.get("WORLD_SIZE", parallel.processes_per_node))
    model_size = (
        parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    )
    if model_size > 0 and world % model_size:
        yield f"parallel: {world} processes cannot be cut into TP x PP x CP = {model_size}"
    longest = config.data.max_prompt_tokens + config.generation.max_response_tokens
    for role, budget in (("policy", config.policy.micro_batch_tokens), ("critic", config.critic.micro_batch_tokens)):
        if budget and budget < longest:
            yield (
                f"{role}.micro_batch_tokens: at least data.max_prompt_tokens + generation.max_response_tokens = "
                f"{longest}, or 0 for that; got {budget}"
            )
    replica = config.generation.tensor_parallel_size  # one that is not set is that of parallel, which is judged
    if replica > 0 and world % replica:
        yield f"generation.tensor_parallel_size: {replica} does not divide {world} processes"
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield "parallel.sequence_parallel: needs tensor_model_parallel_size above 1"
    if torch.cuda.is_available() and parallel.processes_per_node > torch.cuda.device_count():
        yield f"parallel.processes_per_node: {parallel.processes_per_node}, but {torch.cuda.device_count()} GPUs here"
