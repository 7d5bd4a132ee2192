"""Questions from JSONL files and reasoning-gym tasks, with the label firewall.

Answers of streams that are not labeled leave the rows as they are read: they go into an `Answers` that evaluation
alone is given, and nothing that a `Prompt` of such a stream carries depends on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any

from tempo_megatron.config import DataConfig, Overlong, SourceConfig, missing_files
from tempo_megatron.data import tasks, templates
from tempo_megatron.data.identity import key, spoken
from tempo_megatron.data.reading import DataError, Problem, RowLocation, json_rows, json_type, listed
from tempo_megatron.data.templates import Message, Tokenizer
from tempo_megatron.data.types import Prompt

Answers = dict[str, dict[str, Any]]
"""prompt id -> what its grader needs"""


_OPTIONAL = (
    ("grader", "a name", (str,)),
    ("source", "a name", (str,)),
    ("id", "a text or a number", (str, int)),
    ("metadata", "an object", (dict,)),
)
"""keys that a row may leave out: what each is, and the types of its values"""


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
    place: RowLocation | None = None
    """where the row is; None where it is drawn from a task"""


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
    learned: int = 0

    def without(self, prompts: Sequence[Prompt]) -> PromptSet:
        """The same but for the prompts that ask what these ask, from whichever file."""
        questions = {prompt.question for prompt in prompts}
        left = [pair for pair in zip(self.prompts, self.weights, strict=True) if pair[0].question not in questions]
        return replace(self, prompts=[prompt for prompt, _ in left], weights=[weight for _, weight in left])

    def left_out(self) -> str:
        """The counts, in words."""
        learned = f", {self.learned} learned with their answers before the data changed" if self.learned else ""
        return f"left out: {self.overlong} overlong, {self.repeated} repeated, {self.withheld} also evaluated{learned}"


def read_rows(sources: Sequence[SourceConfig], labeled: bool) -> list[Row]:
    """The rows of all sources. Raises DataError listing every problem of all of them."""
    rows: list[Row] = []
    problems: list[str] = []
    for source in sources:
        if bool(source.path) == bool(source.task):
            problems.append("a source needs either path or task")
            continue
        if not 0 < source.weight < inf:
            problems.append(f"{source.path or source.task}: weight is a number above 0, got {source.weight}")
        try:
            rows += _file_rows(source, labeled) if source.path else _task_rows(source)
        except DataError as error:
            problems += str(error).splitlines()
    if problems:
        raise DataError("\n".join(problems))
    return rows


def answered_rows(sources: Iterable[SourceConfig]) -> list[Row]:
    """The rows of files that have an answer, each row of a file once. What cannot be read is left out: `read_rows`
    lists it. Tasks are left out: what they draw is right by their own scorers."""
    rows: dict[tuple[RowLocation | None, str], Row] = {}
    for source in sources:
        if Path(source.path).is_file():
            answered = (row for row in _readable_rows(source, [], labeled=False) if row.answer is not None)
            rows |= {(row.place, row.grader): row for row in answered}
    return list(rows.values())


def to_prompts(
    rows: Sequence[Row],
    config: DataConfig,
    tokenizer: Tokenizer,
    answers: Answers | None,
    withhold: Set[str] = frozenset(),
    learned: Set[str] = frozenset(),
) -> PromptSet:
    """Rows as prompts. With `answers` the stream is not labeled: its answers are moved there.

    Questions whose keys are in `withhold` are left out: one that is evaluated must not be learned from with its answer;
    so are those in `learned`, which were. Raises DataError listing conversations that the chat template refuses and,
    where `data.overlong` is "error", prompts that are too long.
    """
    made = PromptSet()
    problems: list[Problem] = []
    for row in rows:
        question = key(row.question)
        if question in withhold:
            made.withheld += 1
            continue
        if question in learned:
            made.learned += 1
            continue
        if question in made.questions:
            made.repeated += 1
            continue
        made.questions.add(question)
        try:
            token_ids = templates.encode(row.question, row.messages, row.grader, config, tokenizer)
        except ValueError as error:
            problems.append((row.place or RowLocation(row.source), str(error)))
            continue
        if len(token_ids) > config.max_prompt_tokens:
            if config.overlong is Overlong.error:
                too_long = f"{len(token_ids)} tokens, data.max_prompt_tokens is {config.max_prompt_tokens}"
                problems.append((row.place or RowLocation(row.source), too_long))
            made.overlong += 1
            continue
        if answers is not None and row.answer is not None:
            answers[row.id] = row.answer
        answer = row.answer if answers is None else None
        made.prompts.append(Prompt(row.id, tuple(token_ids), row.source, row.grader, answer, question))
        made.weights.append(row.weight)
        made.graders.setdefault(row.grader, row.names_grader)
    if problems:
        raise DataError("\n".join(listed(problems)))
    return made


def _file_rows(source: SourceConfig, labeled: bool) -> list[Row]:
    if missing := missing_files([source]):
        raise DataError("\n".join(missing))
    problems: list[Problem] = []
    rows = list(_readable_rows(source, problems, labeled))
    if problems:
        raise DataError("\n".join(listed(problems)))
    return rows


def _readable_rows(source: SourceConfig, problems: list[Problem], labeled: bool) -> Iterator[Row]:
    """The rows that are as they must be; what is wrong with the others is added to `problems`."""
    path = Path(source.path)
    for place, row in json_rows(path, problems):
        grader = row.get("grader") or source.grader or "exact"
        answer = _answer(row, str(grader))
        wrong = list(_wrong_keys(row))
        if labeled and answer is None:
            wrong.append("a labeled row needs `answer`")
        if wrong:
            problems += [(place, reason) for reason in wrong]
            continue
        messages = tuple(row["messages"]) if row.get("messages") else None
        question = spoken(messages) if messages else row["prompt"]
        own_id = row.get("id")
        yield Row(
            question,
            answer,
            f"{path.name}:{_hash(question) if own_id in (None, '') else own_id}",
            row.get("source") or path.name,
            grader,
            messages,
            source.weight,
            str(place) if row.get("grader") else str(path),
            place,
        )


def _wrong_keys(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the types of a row's values."""
    if not (_is_messages(row["messages"]) if row.get("messages") else _is_prompt(row.get("prompt"))):
        yield (
            "a row needs `prompt`, a text, or `messages`, a list of turns with `role` and `content` "
            "that ends with the user's"
        )
    for name, kind, types in _OPTIONAL:
        if not isinstance(row.get(name), (*types, NoneType)) or isinstance(row.get(name), bool):
            yield f"`{name}` is {kind}, got {json_type(row[name])}"


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(
            isinstance(turn, dict)
            and turn.get("role") in ("system", "user", "assistant")
            and isinstance(turn.get("content"), str)
            for turn in value
        )
        and value[-1]["role"] == "user"
        and _is_prompt(value[-1]["content"])
    )


def _answer(row: dict[str, Any], grader: str) -> dict[str, Any] | None:
    """What the row's grader needs, None where the row has no answer.

    Reasoning-gym scorers and a user's own function are given `metadata`, too, and may need nothing else.
    """
    answer, metadata = row.get("answer"), row.get("metadata")
    if metadata is not None and (answer is not None or ":" in grader or "." in grader):
        return {"question": row.get("prompt"), "answer": answer, "metadata": metadata}
    return None if answer is None else {"answer": answer}


def _task_rows(source: SourceConfig) -> Iterator[Row]:
    try:
        entries = tasks.entries(source)
    except ValueError as error:
        raise DataError(str(error)) from error
    for entry in entries:
        answer = {"question": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}
        id_ = f"{source.task}:{_hash(entry['question'])}"
        grader = f"reasoning_gym:{source.task}"
        yield Row(entry["question"], answer, id_, source.task, grader, None, source.weight, source.task)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
