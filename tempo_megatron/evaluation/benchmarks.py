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
from tempo_megatron.evaluation.protocol import Given, Protocol, protocol_of, protocol_problems
from tempo_megatron.grading import labels
from tempo_megatron.grading.grader import grading_problems
from tempo_megatron.launch import torchrun

_STREAM = "data.held_out"
"""the stream that a benchmark is read as"""


@dataclass(frozen=True)
class Benchmark:
    """`left_out` says, in words, which questions of its sources are not asked; `graders` where each is named first."""

    name: str
    prompts: list[Prompt]
    answers: Answers
    graders: dict[str, str]
    left_out: str
    protocol: Protocol

    def fingerprint(self) -> str:
        """SHA-256 of the prompts as the model reads them, their graders and their answers."""
        rows = [(prompt.id, prompt.token_ids, prompt.grader, self.answers[prompt.id]) for prompt in self.prompts]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def named_by_file(paths: Sequence[str]) -> dict[str, list[SourceConfig]]:
    """The source of each benchmark, a file. Raises DataError naming files that would have one name."""
    sources: dict[str, list[SourceConfig]] = {}
    for path in paths:
        sources.setdefault(_name(Path(path).stem), []).append(SourceConfig(path=path))
    shared = [f"--data: {' and '.join(s.path for s in same)} have one name" for same in sources.values() if same[1:]]
    if shared:
        raise DataError("\n".join(shared))
    return sources


def evaluated_by(config: Config) -> dict[str, list[SourceConfig]]:
    """The sources of each benchmark of a recipe: those of one name in one hidden stream. A name that both streams have
    gets the stream's in front. Raises DataError where there is none."""
    streams = {"unlabeled": config.data.unlabeled, "held_out": config.data.held_out}
    names = {stream: {_name_of(source) for source in sources} for stream, sources in streams.items()}
    shared = names["unlabeled"] & names["held_out"]
    found: dict[str, list[SourceConfig]] = {}
    for stream, sources in streams.items():
        for source in sources:
            name = _name_of(source)
            found.setdefault(f"{stream}_{name}" if name in shared else name, []).append(source)
    if not found:
        raise DataError("--data: required, unless --recipe names unlabeled or held-out questions")
    return found


def read_benchmarks(
    named: Mapping[str, Sequence[SourceConfig]], config: Config, tokenizer: Any, given: Given
) -> list[Benchmark]:
    """The benchmarks, each read by itself. Raises DataError listing all problems of all of them."""
    wrong: list[str] = []
    benchmarks: list[Benchmark] = []
    for name, sources in named.items():
        try:
            benchmarks.append(_read(name, sources, config, tokenizer, given))
        except DataError as error:
            wrong += [re.sub(f"^{_STREAM}", name, line) for line in str(error).splitlines()]
    for benchmark in benchmarks:
        wrong += [*protocol_problems(benchmark.name, benchmark.protocol), *_grading(config.grading, benchmark)]
    if not torchrun.is_checked():
        rows = read_answered_rows(source for sources in named.values() for source in sources)
        wrong += labels.label_problems(rows, config.grading)
    if wrong:
        raise DataError("\n".join(dict.fromkeys(wrong)))  # what is wrong with a setting is said by each of them
    return benchmarks


def unreadable(named: Mapping[str, Sequence[SourceConfig]], config: Config) -> list[str]:
    """What is wrong with the benchmarks' files and labels, a line each, where there is no tokenizer to read with."""
    every = [source for sources in named.values() for source in sources]
    problems_of_all = labels.problems_of_files(replace(config, data=_only(config, every)))
    return [line.removeprefix(f"{_STREAM}: ") for line in problems_of_all]


def _only(config: Config, sources: Sequence[SourceConfig]) -> DataConfig:
    return replace(config.data, labeled=[], unlabeled=[], held_out=list(sources), warm_start=[])


def _read(name: str, sources: Sequence[SourceConfig], config: Config, tokenizer: Any, given: Given) -> Benchmark:
    questions = read_questions(_only(config, sources), tokenizer)
    every = questions.sets["held_out"]
    known = questions.with_answers().get("held_out", [])
    if not known:
        raise DataError(f"{_STREAM}: no question has an answer")
    names = [*map(_name_of, sources), *(_name(prompt.source) for prompt in known)]
    used = {prompt.grader for prompt in known}
    return Benchmark(
        name,
        known,
        {prompt.id: questions.answers[prompt.id] for prompt in known},
        {grader: where for grader, where in every.grader_locations.items() if grader in used},
        f"{every.left_out()}, {len(every.prompts) - len(known)} without an answer",
        protocol_of(names, given, config.evaluation),
    )


def _name_of(source: SourceConfig) -> str:
    return _name(source.task or Path(source.path).stem)


def _name(text: str) -> str:
    """`AIME-2024` -> `aime_2024`."""
    return re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")


def _grading(config: GradingConfig, benchmark: Benchmark) -> list[str]:
    return [f"{benchmark.name}: {problem}" for problem in grading_problems(config, benchmark.graders)]
