"""What an evaluation samples and where it writes, read and checked before anything starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tempo_megatron.config import Config, Precision, load_checked
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.conversion.source import open_source
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.vocabulary import end_token_problems, load_tokenizer, token_problems
from tempo_megatron.evaluation import store
from tempo_megatron.evaluation.benchmarks import (
    Benchmark,
    benchmarks_of_recipe,
    file_benchmarks,
    file_problems,
    read_benchmarks,
)
from tempo_megatron.evaluation.request import EvaluationRequest
from tempo_megatron.planning.layout import KV_HEADS, undivided_by_replica
from tempo_megatron.validation.experts import generator_problems

_MODEL_FILES = (".json", ".safetensors", ".jinja", ".model")
_BLOCK_BYTES, _MAXIMUM_BLOCKS = 2**16, 64


@dataclass(frozen=True)
class Plan:
    config: Config
    out: Path
    benchmarks: list[Benchmark]
    tokenizer: Any

    @property
    def tensor_parallel_size(self) -> int:
        """The number of ranks of one vLLM replica."""
        return _replica_size(self.config)

    def settings(self) -> dict[str, Any]:
        """Returns everything that determines the samples and their grades, as nested mappings."""
        sampled = ("samples", "temperature", "top_p")
        return {
            "model_fingerprint": model_fingerprint(Path(self.config.model.hf_path)),
            "precision": self.config.model.precision.value,
            "seed": self.config.seed,
            "max_response_tokens": self.config.generation.max_response_tokens,
            "benchmarks": {
                benchmark.name: {
                    **{name: getattr(benchmark.protocol, name) for name in sampled},
                    "questions_fingerprint": benchmark.fingerprint(),
                }
                for benchmark in self.benchmarks
            },
        }


def make_plan(request: EvaluationRequest) -> Plan:
    """Returns the plan of an evaluation. Raises ConfigError with a line for each problem of settings, data and
    model."""
    plans: list[Plan] = []

    def check(config: Config) -> list[str]:
        config.model.hf_path = str(request.model)
        problems = [
            f"{item}: benchmarks have protocols of their own; use --samples, --k, --temperature and --top-p"
            for item in request.overrides
            if item.startswith("evaluation.")
        ]
        data_problems: list[str] = []
        try:
            plans.append(Plan(config, request.directory, *_read_questions(config, request)))
        except DataError as error:
            data_problems += str(error).splitlines()
        problems += [*_model_problems(config, plans), *_layout_problems(config), *data_problems]
        return problems or store.differences(plans[0].out, plans[0].settings())

    load_checked(request.recipe, request.overrides, check)
    return plans[0]


def _read_questions(config: Config, request: EvaluationRequest) -> tuple[list[Benchmark], Any]:
    """Returns the benchmarks and the tokenizer that read them. Raises DataError. Where the tokenizer cannot be loaded,
    the error lists the problems of files and labels too."""
    sources = file_benchmarks(request.data) if request.data else benchmarks_of_recipe(config)
    try:
        tokenizer = _load_tokenizer(config)
    except DataError as error:
        raise DataError("\n".join([str(error), *file_problems(sources, config)])) from None
    return read_benchmarks(sources, config, tokenizer, request.protocol), tokenizer


def model_fingerprint(directory: Path) -> str:
    """Returns the SHA-256 of the model's files: their names, their sizes, and as many blocks of each file as tell two
    trainings apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.iterdir() if path.suffix in _MODEL_FILES):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK_BYTES, size // _MAXIMUM_BLOCKS)):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _load_tokenizer(config: Config) -> Any:
    if "{question}" not in config.data.prompt_template:
        raise DataError("data.prompt_template: needs {question}")
    try:
        tokenizer = load_tokenizer(Path(config.model.hf_path))
    except ValueError as error:
        raise DataError(f"--model: {error}") from None
    if config.data.chat_template and not tokenizer.chat_template:
        raise DataError("data.chat_template: the tokenizer has none")
    return tokenizer


def _vocabulary_problems(plan: Plan, vocab_size: int) -> Iterator[str]:
    """Yields a line for each token of a prompt or of a response's end on which model and tokenizer disagree."""
    yield from (f"--model: {problem}" for problem in end_token_problems(plan.config.data, plan.tokenizer, vocab_size))
    for benchmark in plan.benchmarks:
        prompts = {prompt.id: prompt.token_ids for prompt in benchmark.prompts}
        yield from (f"{benchmark.name}: {line}" for line in token_problems(prompts, plan.tokenizer, vocab_size))


def _model_problems(config: Config, plans: Sequence[Plan]) -> Iterator[str]:
    """Yields a line for each problem of the model, and of each plan with this model."""
    try:
        source = open_source(Path(config.model.hf_path), "policy")
    except ConversionError as error:
        yield from (f"--model: {line}" for line in str(error).splitlines())
        return
    yield from (f"--model: {problem}" for problem in generator_problems(source.settings))
    for plan in plans:
        yield from _vocabulary_problems(plan, source.settings.vocab_size)
    prompt_tokens, response_tokens = config.data.max_prompt_tokens, config.generation.max_response_tokens
    if prompt_tokens + response_tokens > source.context:
        length = f"--max-response-tokens {response_tokens} + data.max_prompt_tokens {prompt_tokens}"
        yield f"{length}: the model's context is {source.context}"
    replica_size = _replica_size(config)
    undivided = undivided_by_replica(source.settings, replica_size, leave_out=[KV_HEADS])
    if undivided:
        yield f"--tensor-parallel: {replica_size} does not divide the model's {undivided}"
    kv_heads = source.settings.num_query_groups
    if max(kv_heads, replica_size) % min(kv_heads, replica_size):  # vLLM copies KV heads to a multiple of their number.
        yield f"--tensor-parallel: neither {replica_size} nor the model's {kv_heads} KV heads divides the other"


def _layout_problems(config: Config) -> Iterator[str]:
    processes, replica_size = config.parallel.processes_per_node, _replica_size(config)
    world_size = int(os.environ.get("WORLD_SIZE", processes))
    if world_size % replica_size:
        yield f"--tensor-parallel: {replica_size} does not divide {world_size} processes"
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        yield f"--processes: {processes}, but {torch.cuda.device_count()} GPUs here"
    if config.model.precision is not Precision.fp32 and not torch.cuda.is_available():
        yield "--precision: bf16 needs a GPU; this machine has none, use fp32"


def _replica_size(config: Config) -> int:
    return config.generation.tensor_parallel_size or config.parallel.tensor_model_parallel_size
