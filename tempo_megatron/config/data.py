"""Where questions come from and how they become prompts."""

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
    """What is put around a question. All but `none` add the instruction that the row's grader needs."""

    none = "none"
    """`prompt_template` and `chat_template` alone"""
    chat = "chat"
    """the tokenizer's own chat template"""
    chatml = "chatml"
    """turns between <|im_start|> and <|im_end|>: base models that have these tokens and met them (Qwen3)"""
    completion = "completion"
    """plain text to continue, "Question: ... Answer:": base models that met no turns (OLMo 3, Llama)"""


@dataclass
class SourceConfig:
    """Where prompts come from: a JSONL file (`path`) or a reasoning-gym task (`task`), never both."""

    path: str = setting("", "JSONL file; a row has `prompt` or `messages`, `answer` where labeled; see docs/data.md")
    task: str = setting("", "name of a reasoning-gym task")
    seed: int = setting(0, "seed of the reasoning-gym task; its question i is drawn from seed + i")
    size: int = setting(
        0, "questions to draw from the reasoning-gym task; questions that repeat are kept once", at_least=0
    )
    options: dict[str, Any] = setting({}, "further settings of the reasoning-gym task")
    grader: str = setting("", "grader of rows that name none: `exact`, `math`, ...; a task's own scorer when empty")
    weight: float = setting(1.0, "times that a pass takes each question: 0.5 takes half of them, 2 takes each twice")


@dataclass
class DataConfig:
    labeled: list[SourceConfig] = setting([], "D_L: questions with answers, which calibrate the critic")
    unlabeled: list[SourceConfig] = setting([], "D_U: questions to adapt to; their answers reach evaluation only")
    held_out: list[SourceConfig] = setting([], "questions that are only ever evaluated")
    warm_start: list[SourceConfig] = setting([], "questions with answers for the supervised warm start")
    prompt_style: PromptStyle = setting(
        PromptStyle.none,
        "instruction for the row's grader and the form around it: none (the next two settings), chat (the tokenizer's "
        "template), chatml (base models that know <|im_start|>), completion (plain text)",
    )
    prompt_template: str = setting("{question}", "text given to the model; `{question}` stands for the question")
    chat_template: bool = setting(False, "put the prompt into the tokenizer's chat template as the user's turn")
    max_prompt_tokens: int = setting(1024, "tokens; a longer prompt is handled as `overlong` says", at_least=1)
    overlong: Overlong = setting(Overlong.drop, "prompts over the limit: drop (counted) or error")
    changed: DataChanged = setting(
        DataChanged.refuse,
        "a run that resumes and finds other contents in its data files: refuse, or accept, which keeps questions whose "
        "answers it has learned out of what it is measured by",
    )

    def sources(self) -> list[SourceConfig]:
        """Of all streams."""
        return [*self.labeled, *self.unlabeled, *self.held_out, *self.warm_start]


def missing_files(sources: Iterable[SourceConfig]) -> list[str]:
    """A line for each file that is not there: what can be said of sources without reading them."""
    paths = [Path(source.path) for source in sources if source.path]
    return [f"{path}: no such data file" for path in paths if not path.is_file()]
