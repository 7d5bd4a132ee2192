"""Questions from JSONL files and reasoning-gym tasks, with the label firewall.

Answers of streams that are not labelled leave the rows as they are read: they go into an `Answers` that evaluation
alone is given, and nothing that a `Prompt` of such a stream carries depends on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from tempo_megatron.config import DataConfig, Overlong, SourceConfig, missing_files
from tempo_megatron.data import tasks, templates
from tempo_megatron.data.identity import key, spoken
from tempo_megatron.data.templates import Message, Tokenizer
from tempo_megatron.data.types import Prompt

Answers = dict[str, dict[str, Any]]
"""prompt id -> what its grader needs"""


class DataError(ValueError):
    """A data file or task is not usable; the message lists file, row and reason, one problem a line."""


@dataclass(frozen=True)
class Row:
    question: str
    answer: dict[str, Any] | None
    id: str
    source: str
    grader: str
    messages: tuple[Message, ...] | None = None
    """the conversation that `question` is the text of, where the row has one"""
    weight: float = 1.0
    names_grader: str = ""
    """where the grader is named: a file's line, the file alone where its source says it of all, or the task"""


@dataclass
class PromptSet:
    """Prompts of one stream. Questions that repeat are kept once; the counts are of prompts left out."""

    prompts: list[Prompt] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    """of each prompt, its source's: times that a pass takes it"""
    questions: set[str] = field(default_factory=set)
    """keys of all questions that the stream was given, overlong ones too"""
    graders: dict[str, str] = field(default_factory=dict)
    """the prompts' graders, each with where it is named first"""
    overlong: int = 0
    repeated: int = 0
    withheld: int = 0
    learnt: int = 0

    def without(self, prompts: Sequence[Prompt]) -> PromptSet:
        """The same but for the prompts that ask what these ask, from whichever file."""
        questions = {prompt.question for prompt in prompts}
        left = [pair for pair in zip(self.prompts, self.weights, strict=True) if pair[0].question not in questions]
        return replace(self, prompts=[prompt for prompt, _ in left], weights=[weight for _, weight in left])

    def left_out(self) -> str:
        """The counts, in words."""
        learnt = f", {self.learnt} learnt with their answers before the data changed" if self.learnt else ""
        return f"left out: {self.overlong} overlong, {self.repeated} repeated, {self.withheld} also evaluated{learnt}"


def read_rows(sources: Sequence[SourceConfig], labelled: bool) -> list[Row]:
    """The rows of all sources. Raises DataError listing every problem found in any of them."""
    rows, problems = [], []
    for source in sources:
        if bool(source.path) == bool(source.task):
            problems.append("a source needs either path or task")
            continue
        if not 0 < source.weight < inf:
            problems.append(f"{source.path or source.task}: weight is a number above 0, got {source.weight}")
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
    learnt: Set[str] = frozenset(),
) -> PromptSet:
    """Rows as prompts. With `answers` the stream is not labelled: its answers are moved there.

    Questions whose keys are in `withhold` are left out: one that is evaluated must not be learnt from with its answer;
    so are those in `learnt`, which were. Raises DataError naming the first overlong prompt where `data.overlong` is
    "error".
    """
    made = PromptSet()
    for row in rows:
        question = key(row.question)
        if question in withhold:
            made.withheld += 1
            continue
        if question in learnt:
            made.learnt += 1
            continue
        if question in made.questions:
            made.repeated += 1
            continue
        made.questions.add(question)
        try:
            token_ids = templates.encode(row.question, row.messages, row.grader, config, tokenizer)
        except ValueError as error:
            raise DataError(f"{row.source}: prompt {row.id}: {error}") from error
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
        made.prompts.append(Prompt(row.id, tuple(token_ids), row.source, row.grader, answer, question))
        made.weights.append(row.weight)
        made.graders.setdefault(row.grader, row.names_grader)
    return made


def _file_rows(source: SourceConfig, labelled: bool, problems: list[str]) -> Iterator[Row]:
    path = Path(source.path)
    if missing := missing_files([source]):
        problems += missing
        return
    lines = path.read_text(encoding="utf-8").split("\n")  # texts may hold the further line ends of str.splitlines
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
        if not isinstance(row, dict) or not (_is_prompt(row.get("prompt")) or _is_messages(row.get("messages"))):
            problems.append(
                f"{where}: a row needs `prompt`, a text, or `messages`, a list of turns with `role` and `content` "
                "that ends with the user's"
            )
            continue
        answer = _answer(row)
        if labelled and answer is None:
            problems.append(f"{where}: a labelled row needs `answer`")
            continue
        messages = tuple(row["messages"]) if row.get("messages") else None
        question = spoken(messages) if messages else row["prompt"]
        own_id = row.get("id")
        id_ = f"{path.name}:{_hash(question) if own_id in (None, '') else own_id}"
        grader = row.get("grader") or source.grader or "exact"
        if not isinstance(grader, str):
            problems.append(f"{where}: `grader` is a name, got {grader!r}")
            continue
        named = where if row.get("grader") else str(path)
        yield Row(question, answer, id_, row.get("source") or path.name, grader, messages, source.weight, named)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict)
            and turn.get("role") in ("system", "user", "assistant")
            and isinstance(turn.get("content"), str)
            for turn in value
        )
        and value[-1]["role"] == "user"
    )


def _answer(row: dict[str, Any]) -> dict[str, Any] | None:
    """What the row's grader needs; a reasoning-gym scorer needs the whole entry."""
    if row.get("metadata") is not None:
        return {"question": row.get("prompt"), "answer": row.get("answer"), "metadata": row["metadata"]}
    return None if row.get("answer") is None else {"answer": row["answer"]}


def _task_rows(source: SourceConfig, problems: list[str]) -> Iterator[Row]:
    try:
        entries = tasks.entries(source)
    except ValueError as error:
        problems.append(str(error))
        return
    for entry in entries:
        answer = {"question": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}
        id_ = f"{source.task}:{_hash(entry['question'])}"
        grader = f"reasoning_gym:{source.task}"
        yield Row(entry["question"], answer, id_, source.task, grader, None, source.weight, source.task)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
