"""What is to be evaluated, read and checked before anything starts."""

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
from tempo_megatron.evaluation.arguments import Arguments
from tempo_megatron.evaluation.benchmarks import Benchmark, evaluated_by, named_by_file, read_benchmarks, unreadable

_MODEL_FILES = (".json", ".safetensors", ".jinja", ".model")
_BLOCK, _BLOCKS = 2**16, 64


@dataclass(frozen=True)
class Plan:
    config: Config
    out: Path
    benchmarks: list[Benchmark]
    tokenizer: Any

    @property
    def tensor_parallel_size(self) -> int:
        """Ranks of one vLLM replica."""
        return _replica(self.config)

    def settings(self) -> dict[str, Any]:
        """All that the samples and their grades follow from, in nested mappings."""
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


def make_plan(arguments: Arguments) -> Plan:
    """Raises ConfigError listing all that is wrong, a line each."""
    made: list[Plan] = []

    def check(config: Config) -> list[str]:
        config.model.hf_path = str(arguments.model)
        found = [
            f"{item}: benchmarks have protocols of their own; use --samples, --k, --temperature and --top-p"
            for item in arguments.overrides
            if item.startswith("evaluation.")
        ]
        unreadable: list[str] = []
        try:
            made.append(Plan(config, arguments.out, *_questions(config, arguments)))
        except DataError as error:
            unreadable += str(error).splitlines()
        found += [*_model(config, made), *_layout(config), *unreadable]
        return found or store.differences(made[0].out, made[0].settings())

    load_checked(arguments.recipe, arguments.overrides, check)
    return made[0]


def _questions(config: Config, arguments: Arguments) -> tuple[list[Benchmark], Any]:
    """The benchmarks and the tokenizer that they were read with. Raises DataError; without a tokenizer it lists
    what is wrong with files and labels, too."""
    named = named_by_file(arguments.data) if arguments.data else evaluated_by(config)
    try:
        tokenizer = _tokenizer(config)
    except DataError as error:
        raise DataError("\n".join([str(error), *unreadable(named, config)])) from None
    return read_benchmarks(named, config, tokenizer, arguments.protocol), tokenizer


def model_fingerprint(directory: Path) -> str:
    """SHA-256 over the model's files: names, sizes, and of each as many blocks as tell two trainings apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.iterdir() if path.suffix in _MODEL_FILES):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _tokenizer(config: Config) -> Any:
    if "{question}" not in config.data.prompt_template:
        raise DataError("data.prompt_template: needs {question}")
    try:
        tokenizer = load_tokenizer(Path(config.model.hf_path))
    except ValueError as error:
        raise DataError(f"--model: {error}") from None
    if config.data.chat_template and not tokenizer.chat_template:
        raise DataError("data.chat_template: the tokenizer has none")
    return tokenizer


def _vocabulary(plan: Plan, vocab_size: int) -> Iterator[str]:
    """Where model and tokenizer do not agree on the tokens of prompts and of the end."""
    yield from (f"--model: {problem}" for problem in end_token_problems(plan.config.data, plan.tokenizer, vocab_size))
    for benchmark in plan.benchmarks:
        prompts = {prompt.id: prompt.token_ids for prompt in benchmark.prompts}
        yield from (f"{benchmark.name}: {line}" for line in token_problems(prompts, plan.tokenizer, vocab_size))


def _model(config: Config, plans: Sequence[Plan]) -> Iterator[str]:
    """What is wrong with the model, and with the plans, if there is one, for this model."""
    try:
        source = open_source(Path(config.model.hf_path), "policy")
    except ConversionError as error:
        yield from (f"--model: {line}" for line in str(error).splitlines())
        return
    for plan in plans:
        yield from _vocabulary(plan, source.settings.vocab_size)
    prompt, response = config.data.max_prompt_tokens, config.generation.max_response_tokens
    if prompt + response > source.context:
        length = f"--max-response-tokens {response} + data.max_prompt_tokens {prompt}"
        yield f"{length}: the model's context is {source.context}"
    heads = source.settings.num_attention_heads
    if heads % _replica(config):
        yield f"--tensor-parallel: {_replica(config)} does not divide the model's {heads} attention heads"


def _layout(config: Config) -> Iterator[str]:
    processes, replica = config.parallel.processes_per_node, _replica(config)
    world = int(os.environ.get("WORLD_SIZE", processes))
    if world % replica:
        yield f"--tensor-parallel: {replica} does not divide {world} processes"
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        yield f"--processes: {processes}, but {torch.cuda.device_count()} GPUs here"
    if config.model.precision is not Precision.fp32 and not torch.cuda.is_available():
        yield "--precision: bf16 needs a GPU; this machine has none, use fp32"


def _replica(config: Config) -> int:
    return config.generation.tensor_parallel_size or config.parallel.tensor_model_parallel_size
