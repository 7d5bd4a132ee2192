"""Benchmarks: questions with answers that are reported together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tempo_megatron.config import Config, DataConfig, GradingConfig, SourceConfig
from tempo_megatron.data.questions import read_questions
from tempo_megatron.data.reading import DataError
from tempo_megatron.data.sources import Answers, read_answered_rows
from tempo_megatron.data.types import Prompt
from tempo_megatron.evaluation.protocol import Protocol, ProtocolOverrides, protocol_of, protocol_problems
from tempo_megatron.grading import labels
from tempo_megatron.grading.rollout_grader import grading_problems
from tempo_megatron.launch import torchrun

_STREAM = "data.held_out"
"""A benchmark is read as this stream."""


@dataclass(frozen=True)
class Benchmark:
    name: str
    prompts: list[Prompt]
    answers: Answers
    graders: dict[str, str]
    """The place that first names each grader, by grader."""
    left_out: str
    """The questions of its sources that are not asked, in words."""
    protocol: Protocol

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the prompts as the model reads them, their graders and their answers."""
        rows = [(prompt.id, prompt.token_ids, prompt.grader, self.answers[prompt.id]) for prompt in self.prompts]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def file_benchmarks(paths: Sequence[str]) -> dict[str, list[SourceConfig]]:
    """Returns the sources of each benchmark by its name; each file is a benchmark. Raises DataError naming the files
    that would share a name."""
    sources: dict[str, list[SourceConfig]] = {}
    for path in paths:
        sources.setdefault(_benchmark_name(Path(path).stem), []).append(SourceConfig(path=path))
    problems = [
        f"--data: {' and '.join(source.path for source in same_name)} have one name"
        for same_name in sources.values()
        if len(same_name) > 1
    ]
    if problems:
        raise DataError("\n".join(problems))
    return sources


def benchmarks_of_recipe(config: Config) -> dict[str, list[SourceConfig]]:
    """Returns the sources of each benchmark of a recipe by its name: those that share a name within the unlabeled or
    the held-out stream. A name that both streams have gets the name of its stream in front. Raises DataError where the
    recipe has no such sources."""
    streams = {"unlabeled": config.data.unlabeled, "held_out": config.data.held_out}
    names = {stream: {_source_name(source) for source in sources} for stream, sources in streams.items()}
    shared_names = names["unlabeled"] & names["held_out"]
    benchmarks: dict[str, list[SourceConfig]] = {}
    for stream, sources in streams.items():
        for source in sources:
            name = _source_name(source)
            benchmarks.setdefault(f"{stream}_{name}" if name in shared_names else name, []).append(source)
    if not benchmarks:
        raise DataError("--data: required, unless --recipe names unlabeled or held-out questions")
    return benchmarks


def read_benchmarks(
    sources: Mapping[str, Sequence[SourceConfig]], config: Config, tokenizer: Any, overrides: ProtocolOverrides
) -> list[Benchmark]:
    """Returns the benchmarks, given the sources of each by its name. Raises DataError listing the problems of all."""
    problems: list[str] = []
    benchmarks: list[Benchmark] = []
    for name, benchmark_sources in sources.items():
        try:
            benchmarks.append(_read_benchmark(name, benchmark_sources, config, tokenizer, overrides))
        except DataError as error:
            problems += [re.sub(f"^{_STREAM}", name, line) for line in str(error).splitlines()]
    for benchmark in benchmarks:
        problems += protocol_problems(benchmark.name, benchmark.protocol)
        problems += _grader_problems(config.grading, benchmark)
    if not torchrun.is_checked():
        rows = read_answered_rows(source for benchmark_sources in sources.values() for source in benchmark_sources)
        problems += labels.label_problems(rows, config.grading)
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))  # each benchmark names a setting's problem again
    return benchmarks


def file_problems(sources: Mapping[str, Sequence[SourceConfig]], config: Config) -> list[str]:
    """Returns a line for each problem of the benchmarks' files and labels that can be seen without a tokenizer."""
    all_sources = [source for benchmark_sources in sources.values() for source in benchmark_sources]
    problems = labels.problems_of_files(replace(config, data=_held_out_only(config, all_sources)))
    return [line.removeprefix(f"{_STREAM}: ") for line in problems]


def _held_out_only(config: Config, sources: Sequence[SourceConfig]) -> DataConfig:
    return replace(config.data, labeled=[], unlabeled=[], held_out=list(sources), warm_start=[])


def _read_benchmark(
    name: str, sources: Sequence[SourceConfig], config: Config, tokenizer: Any, overrides: ProtocolOverrides
) -> Benchmark:
    questions = read_questions(_held_out_only(config, sources), tokenizer)
    held_out = questions.sets["held_out"]
    prompts = questions.with_answers().get("held_out", [])
    if not prompts:
        raise DataError(f"{_STREAM}: no question has an answer")
    names = [*map(_source_name, sources), *(_benchmark_name(prompt.source) for prompt in prompts)]
    graders = {prompt.grader for prompt in prompts}
    return Benchmark(
        name,
        prompts,
        {prompt.id: questions.answers[prompt.id] for prompt in prompts},
        {grader: place for grader, place in held_out.grader_locations.items() if grader in graders},
        f"{held_out.left_out()}, {len(held_out.prompts) - len(prompts)} without an answer",
        protocol_of(names, overrides, config.evaluation),
    )


def _source_name(source: SourceConfig) -> str:
    return _benchmark_name(source.task or Path(source.path).stem)


def _benchmark_name(text: str) -> str:
    """Returns a name of lower-case words joined by `_`: `AIME-2024` becomes `aime_2024`."""
    return re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")


def _grader_problems(config: GradingConfig, benchmark: Benchmark) -> list[str]:
    return [f"{benchmark.name}: {problem}" for problem in grading_problems(config, benchmark.graders)]
