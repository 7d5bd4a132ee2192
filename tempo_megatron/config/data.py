"""Settings of data: the sources of questions, and how a question becomes a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tempo_megatron.config.fields import setting


class Overlong(StrEnum):
    drop = "drop"
    error = "error"


class DataChanged(StrEnum):
    refuse = "refuse"
    accept = "accept"


class PromptStyle(StrEnum):
    """The text around a question. Every style but `none` adds the instruction that the row's grader needs."""

    none = "none"
    """`prompt_template` and `chat_template` alone decide."""
    chat = "chat"
    """The tokenizer's own chat template."""
    chatml = "chatml"
    """Turns between <|im_start|> and <|im_end|>, for base models that were trained on these tokens (Qwen3)."""
    completion = "completion"
    """Plain text to continue, "Question: ... Answer:", for base models trained on no turns (OLMo 3, Llama)."""


@dataclass
class SourceConfig:
    """A source of prompts: either a JSONL file (`path`) or a reasoning-gym task (`task`)."""

    path: str = setting(
        "", "JSONL file; a row has `prompt` or `messages`, and `answer` if it is labeled (docs/data.md)"
    )
    task: str = setting("", "name of a reasoning-gym task")
    seed: int = setting(0, "seed of the reasoning-gym task; question i has seed + i")
    size: int = setting(
        0, "number of questions of the reasoning-gym task; a repeated question is kept once", at_least=0
    )
    options: dict[str, Any] = setting({}, "other options of the reasoning-gym task, by name")
    grader: str = setting("", "grader of rows that name none, such as `exact` or `math`; empty: the task's own scorer")
    weight: float = setting(
        1.0, "how often a pass over the data takes each question: 0.5 takes half of them, 2 takes each twice"
    )


@dataclass
class DataConfig:
    labeled: list[SourceConfig] = setting([], "D_L: questions with answers; they calibrate the critic")
    unlabeled: list[SourceConfig] = setting(
        [], "D_U: questions that the policy adapts to; only evaluation reads their answers"
    )
    held_out: list[SourceConfig] = setting([], "questions that are only evaluated")
    warm_start: list[SourceConfig] = setting([], "questions with answers for the supervised warm start")
    prompt_style: PromptStyle = setting(
        PromptStyle.none,
        "text around a question, with the instruction for its grader: none (the next two settings decide), chat (the "
        "tokenizer's template), chatml (base models that know <|im_start|>), completion (plain text)",
    )
    prompt_template: str = setting("{question}", "prompt of the model; `{question}` stands for the question")
    chat_template: bool = setting(False, "wrap the prompt as the user's turn of the tokenizer's chat template")
    max_prompt_tokens: int = setting(
        1024, "longest prompt, in tokens; `overlong` says what happens to longer ones", at_least=1
    )
    overlong: Overlong = setting(
        Overlong.drop, "what happens to prompts over the limit: drop (they are counted) or error"
    )
    changed: DataChanged = setting(
        DataChanged.refuse,
        "what a resumed run does when its data files have changed: refuse, or accept and no longer measure "
        "itself by questions whose answers it has learned",
    )

    def sources(self) -> list[SourceConfig]:
        """Returns the sources of all streams."""
        return [*self.labeled, *self.unlabeled, *self.held_out, *self.warm_start]


def missing_files(sources: Iterable[SourceConfig]) -> list[str]:
    """Returns a line for each file that does not exist, without reading any."""
    paths = [Path(source.path) for source in sources if source.path]
    return [f"{path}: no such data file" for path in paths if not path.is_file()]
