"""Questions from JSONL files and reasoning-gym tasks, with the label firewall.

Answers of streams that are not labelled leave the rows as they are read: they go into an `Answers` that evaluation
alone is given, and nothing that a `Prompt` of such a stream carries depends on them.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tempo_megatron.config import DataConfig, Overlong, SourceConfig
from tempo_megatron.data.types import Prompt

Answers = dict[str, dict[str, Any]]
"""prompt id -> what its grader needs"""


class DataError(ValueError):
    """A data file or task is not usable; the message lists file, row and reason, one problem a line."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Row:
    question: str
    answer: dict[str, Any] | None
    id: str
    source: str
    grader: str


@dataclass
class PromptSet:
    """Prompts of one stream. Questions that repeat are kept once; the counts are of prompts left out."""

    prompts: list[Prompt] = field(default_factory=list)
    questions: set[str] = field(default_factory=set)
    overlong: int = 0
    repeated: int = 0
    withheld: int = 0

    def left_out(self) -> str:
        """The counts, in words."""
        return f"left out: {self.overlong} overlong, {self.repeated} repeated, {self.withheld} also evaluated"


def read_rows(sources: Sequence[SourceConfig], labelled: bool) -> list[Row]:
    """The rows of all sources. Raises DataError listing every problem found in any of them."""
    rows, problems = [], []
    for source in sources:
        if bool(source.path) == bool(source.task):
            problems.append("a source needs either path or task")
            continue
        found: list[str] = []
        rows += list(_file_rows(source, labelled, found) if source.path else _task_rows(source, found))
        problems += found
    if problems:
        raise DataError("\n".join(problems))
    return rows


def to_prompts(
    rows: Sequence[Row],
    config: DataConfig,
    tokenizer: Tokenizer,
    answers: Answers | None,
    withhold: Set[str] = frozenset(),
) -> PromptSet:
    """Rows as prompts. With `answers` the stream is not labelled: its answers are moved there.

    Questions in `withhold` are left out: one that is evaluated must not be learnt from with its answer. Raises
    DataError naming the first overlong prompt where `data.overlong` is "error".
    """
    made = PromptSet()
    for row in rows:
        if row.question in withhold:
            made.withheld += 1
            continue
        if row.question in made.questions:
            made.repeated += 1
            continue
        made.questions.add(row.question)
        token_ids = _encode(row.question, config, tokenizer)
        if len(token_ids) > config.max_prompt_tokens:
            if config.overlong is Overlong.error:
                raise DataError(
                    f"{row.source}: prompt {row.id} has {len(token_ids)} tokens, data.max_prompt_tokens is "
                    f"{config.max_prompt_tokens}"
                )
            made.overlong += 1
            continue
        if answers is not None and row.answer is not None:
            answers[row.id] = row.answer
        answer = row.answer if answers is None else None
        made.prompts.append(Prompt(row.id, tuple(token_ids), row.source, row.grader, answer))
    return made


def _encode(question: str, config: DataConfig, tokenizer: Tokenizer) -> list[int]:
    text = config.prompt_template.format(question=question)
    if not config.chat_template:
        return tokenizer.encode(text, add_special_tokens=False)
    turn = [{"role": "user", "content": text}]
    ids: list[int] = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    return ids


def _file_rows(source: SourceConfig, labelled: bool, problems: list[str]) -> Iterator[Row]:
    path = Path(source.path)
    if not path.is_file():
        problems.append(f"{path}: no such data file")
        return
    lines = path.read_text().splitlines()
    if not any(line.strip() for line in lines):
        problems.append(f"{path}: the data file is empty")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}: not JSON: {error}")
            continue
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
            problems.append(f"{where}: a row needs `prompt`, a text")
            continue
        if labelled and row.get("answer") is None:
            problems.append(f"{where}: a labelled row needs `answer`")
            continue
        grader = row.get("grader") or source.grader or "exact"
        answer = None if row.get("answer") is None else {"answer": row["answer"]}
        identity = str(row.get("id") or _hash(row["prompt"]))
        yield Row(row["prompt"], answer, f"{path.name}:{identity}", path.name, grader)


def _task_rows(source: SourceConfig, problems: list[str]) -> Iterator[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a package that reasoning-gym needs, when first compiled
        import reasoning_gym

    try:
        questions = reasoning_gym.create_dataset(
            source.task,
            seed=source.seed,
            size=source.size,
            **{str(key): value for key, value in source.options.items()},
        )
    except (ValueError, TypeError, AssertionError) as error:
        problems.append(f"reasoning-gym task {source.task!r}: {error}")
        return
    for entry in questions:
        answer = {"question": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}
        identity = f"{source.task}:{_hash(entry['question'])}"
        yield Row(entry["question"], answer, identity, source.task, f"reasoning_gym:{source.task}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
