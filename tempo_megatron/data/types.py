"""What flows through the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A question as the model reads it. `answer` is None unless the prompt comes from a labeled stream."""

    id: str
    """unique within the run, and the same in every run over the same data"""
    token_ids: tuple[int, ...]
    source: str
    grader: str
    """its name, as `grading` knows it: `exact`, `math`, `choice`, ..., `reasoning_gym:<task>`"""
    answer: dict[str, Any] | None = None
    """what the grader needs: always the key `answer`; reasoning-gym entries carry `metadata` too"""
    question: str = ""
    """`identity.key` of the question: the same in every file that has it"""


@dataclass(frozen=True)
class Rollout:
    """One sampled response, ending in the end-of-sequence token unless it was cut."""

    prompt: Prompt
    sample: int
    """index among the prompt's samples of this iteration"""
    response_ids: tuple[int, ...]
    generator_log_probs: tuple[float, ...] = field(repr=False)
    """log-probability of each response token under the sampling distribution's temperature, from the generator"""
    finish_reason: str
    """`stop` or `length`"""

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt.token_ids + self.response_ids
