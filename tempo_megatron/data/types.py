"""The data types of the training loop: prompts and rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """A question as the model reads it. `answer` is None unless the prompt comes from a labeled stream."""

    id: str
    """The prompt's id: unique within the run, and the same in every run over the same data."""
    token_ids: tuple[int, ...]
    source: str
    grader: str
    """The name of the grader, for example `exact`, `math`, `choice` or `reasoning_gym:<task>`."""
    answer: dict[str, Any] | None = None
    """What the grader needs: always the key `answer`, and `metadata` for reasoning-gym tasks."""
    question: str = ""
    """The `identity.question_key` of the question: the same in every file that contains the question."""


@dataclass(frozen=True)
class Rollout:
    """One sampled response. It ends with the end-of-sequence token unless it was truncated or is paused."""

    prompt: Prompt
    sample: int
    """The index among the prompt's samples of this iteration."""
    response_ids: tuple[int, ...]
    generator_log_probs: tuple[float, ...] = field(repr=False)
    """The generator's log-probability of each response token, at the temperature of sampling."""
    finish_reason: str
    """`stop`, `length` for a truncated response, or `paused` for one that goes on in the next iteration."""
    stale_tokens: int = 0
    """The number of its first tokens that earlier policies sampled."""
    staleness: int = 0
    """The age of its first token: how many M-steps the policy has made since."""
    started: int = 0
    """The iteration that took its prompt, where responses may pause; 0 where none may. With the prompt it names the
    group of a rollout."""
    routes: np.ndarray | None = field(default=None, compare=False, repr=False)
    """The experts that the generator chose for each token but the last, prompt included, where router replay needs
    them: [tokens - 1, layers, experts per token], uint8 or uint16."""

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def paused(self) -> bool:
        return self.finish_reason == "paused"

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt.token_ids + self.response_ids
