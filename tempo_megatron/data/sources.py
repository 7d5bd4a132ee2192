"""Reads questions from JSONL files and reasoning-gym tasks, and applies the label firewall.

The answers of unlabeled and held-out streams are split off when rows become prompts. They go into `Answers`, which only
evaluation receives. Nothing in a `Prompt` of such a stream depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any

from tempo_megatron.config import DataConfig, Overlong, SourceConfig, missing_files
from tempo_megatron.data import tasks, templates
from tempo_megatron.data.identity import conversation_text, question_key, text_hash
from tempo_megatron.data.reading import DataError, Problem, RowLocation, format_problems, json_rows, json_type_name
from tempo_megatron.data.templates import Message, Tokenizer
from tempo_megatron.data.types import Prompt

Answers = dict[str, dict[str, Any]]
"""Prompt id -> what the prompt's grader needs."""


_OPTIONAL = (
    ("grader", "a name", (str,)),
    ("source", "a name", (str,)),
    ("id", "a text or a number", (str, int)),
    ("metadata", "an object", (dict,)),
)
"""Optional keys of a row: the name, the description in errors, and the types of the value."""


@dataclass(frozen=True)
class Row:
    """One question as it is read, before it becomes a prompt."""

    question: str
    """The question's text; of a conversation, all turns but the system's."""
    answer: dict[str, Any] | None
    """What the grader needs; None for a row without an answer."""
    id: str
    source: str
    grader: str
    messages: tuple[Message, ...] | None = None
    """The conversation, where the row has one instead of a prompt."""
    weight: float = 1.0
    """How many times a pass takes the question; the weight of its source."""
    grader_location: str = ""
    """What names the grader: a row, a file whose source names it for all rows, or a task."""
    location: RowLocation | None = None
    """The row's place in a file; None for a question of a task."""


@dataclass
class PromptSet:
    """The prompts of one stream, each question once, and the numbers of excluded prompts."""

    prompts: list[Prompt] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    """For each prompt, how many times a pass takes it."""
    questions: set[str] = field(default_factory=set)
    """The keys of all questions of the stream, overlong ones included."""
    grader_locations: dict[str, str] = field(default_factory=dict)
    """The prompts' graders, each with the first place that names it."""
    overlong: int = 0
    """Prompts with more tokens than `data.max_prompt_tokens`."""
    repeated: int = 0
    """Prompts whose question occurred before in the stream."""
    withheld: int = 0
    """Prompts whose question is evaluated."""
    learned: int = 0
    """Prompts whose question the run has learned with its answer."""

    def without(self, prompts: Sequence[Prompt]) -> PromptSet:
        """Return the set without the questions of these prompts, whichever file they are from."""
        excluded = {prompt.question for prompt in prompts}
        remaining = [pair for pair in zip(self.prompts, self.weights, strict=True) if pair[0].question not in excluded]
        return replace(self, prompts=[prompt for prompt, _ in remaining], weights=[weight for _, weight in remaining])

    def left_out(self) -> str:
        """Return the numbers of excluded prompts, in words."""
        learned = f", {self.learned} learned with their answers before the data changed" if self.learned else ""
        return f"left out: {self.overlong} overlong, {self.repeated} repeated, {self.withheld} also evaluated{learned}"


def read_rows(sources: Sequence[SourceConfig], labeled: bool) -> list[Row]:
    """Return the rows of all sources. Raises DataError listing every problem of every source."""
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


def read_answered_rows(sources: Iterable[SourceConfig]) -> list[Row]:
    """Return the rows of files that have an answer, each row of a file once for each grader.

    Unreadable rows are skipped, because `read_rows` reports them. Tasks are skipped, because their own scorers accept
    their answers.
    """
    rows: dict[tuple[RowLocation | None, str], Row] = {}
    for source in sources:
        if Path(source.path).is_file():
            answered = (row for row in _valid_rows(source, [], labeled=False) if row.answer is not None)
            rows |= {(row.location, row.grader): row for row in answered}
    return list(rows.values())


def to_prompts(
    rows: Sequence[Row],
    config: DataConfig,
    tokenizer: Tokenizer,
    answers: Answers | None,
    withhold: Set[str] = frozenset(),
    learned: Set[str] = frozenset(),
) -> PromptSet:
    """Return the rows as prompts. `answers` receives the answers of an unlabeled stream; it is None for a labeled one.

    Questions with a key in `withhold` are excluded: they are evaluated, and must not be learned with their answers.
    Questions with a key in `learned` are excluded, because they were learned with their answers. Raises DataError
    listing conversations that the chat template refuses and, where `data.overlong` is "error", overlong prompts.
    """
    prompt_set = PromptSet()
    problems: list[Problem] = []
    for row in rows:
        question = question_key(row.question)
        if question in withhold:
            prompt_set.withheld += 1
            continue
        if question in learned:
            prompt_set.learned += 1
            continue
        if question in prompt_set.questions:
            prompt_set.repeated += 1
            continue
        prompt_set.questions.add(question)
        try:
            token_ids = templates.encode_prompt(row.question, row.messages, row.grader, config, tokenizer)
        except ValueError as error:
            problems.append((row.location or RowLocation(row.source), str(error)))
            continue
        if len(token_ids) > config.max_prompt_tokens:
            if config.overlong is Overlong.error:
                too_long = f"{len(token_ids)} tokens, data.max_prompt_tokens is {config.max_prompt_tokens}"
                problems.append((row.location or RowLocation(row.source), too_long))
            prompt_set.overlong += 1
            continue
        if answers is not None and row.answer is not None:
            answers[row.id] = row.answer
        answer = row.answer if answers is None else None
        prompt_set.prompts.append(Prompt(row.id, tuple(token_ids), row.source, row.grader, answer, question))
        prompt_set.weights.append(row.weight)
        prompt_set.grader_locations.setdefault(row.grader, row.grader_location)
    if problems:
        raise DataError("\n".join(format_problems(problems)))
    return prompt_set


def _file_rows(source: SourceConfig, labeled: bool) -> list[Row]:
    if missing := missing_files([source]):
        raise DataError("\n".join(missing))
    problems: list[Problem] = []
    rows = list(_valid_rows(source, problems, labeled))
    if problems:
        raise DataError("\n".join(format_problems(problems)))
    return rows


def _valid_rows(source: SourceConfig, problems: list[Problem], labeled: bool) -> Iterator[Row]:
    """Yield the valid rows of a file, and add the problems of the others to `problems`."""
    path = Path(source.path)
    for location, row in json_rows(path, problems):
        grader = row.get("grader") or source.grader or "exact"
        answer = _answer(row, str(grader))
        reasons = list(_type_problems(row))
        if labeled and answer is None:
            reasons.append("a labeled row needs `answer`")
        if reasons:
            problems += [(location, reason) for reason in reasons]
            continue
        messages = tuple(row["messages"]) if row.get("messages") else None
        question = conversation_text(messages) if messages else row["prompt"]
        own_id = row.get("id")
        yield Row(
            question,
            answer,
            f"{path.name}:{text_hash(question) if own_id in (None, '') else own_id}",
            row.get("source") or path.name,
            grader,
            messages,
            source.weight,
            str(location) if row.get("grader") else str(path),
            location,
        )


def _type_problems(row: dict[str, Any]) -> Iterator[str]:
    """Yield which values of a row have the wrong type."""
    if not (_is_messages(row["messages"]) if row.get("messages") else _is_prompt(row.get("prompt"))):
        yield (
            "a row needs `prompt`, a text, or `messages`, a list of turns with `role` and `content` "
            "that ends with the user's"
        )
    for name, description, types in _OPTIONAL:
        if not isinstance(row.get(name), (*types, NoneType)) or isinstance(row.get(name), bool):
            yield f"`{name}` is {description}, got {json_type_name(row[name])}"


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
    """Return what the row's grader needs; None for a row without an answer.

    Reasoning-gym scorers and a user's own function receive `metadata` too, and may need nothing else.
    """
    answer, metadata = row.get("answer"), row.get("metadata")
    if metadata is not None and (answer is not None or ":" in grader or "." in grader):
        return {"question": row.get("prompt"), "answer": answer, "metadata": metadata}
    return None if answer is None else {"answer": answer}


def _task_rows(source: SourceConfig) -> Iterator[Row]:
    try:
        entries = tasks.task_entries(source)
    except ValueError as error:
        raise DataError(str(error)) from error
    for entry in entries:
        answer = {"question": entry["question"], "answer": entry["answer"], "metadata": entry["metadata"]}
        id_ = f"{source.task}:{text_hash(entry['question'])}"
        grader = f"reasoning_gym:{source.task}"
        yield Row(entry["question"], answer, id_, source.task, grader, None, source.weight, source.task)
