"""Verified correctness by the scorer that a prompt names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tempo_megatron.data.sources import Answers
from tempo_megatron.data.types import Rollout

Scorer = Callable[[str, dict[str, Any]], bool]
_FULL_SCORE = 1.0 - 1e-9
_log = logging.getLogger(__name__)


class Grader:
    """Grades rollouts. `errors` counts scorers that raised: such a response is wrong, and the first is logged."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self.errors = 0

    def grade(self, rollouts: Sequence[Rollout], answers: Answers) -> list[float]:
        """Correctness in {0, 1} of each rollout; a truncated one is wrong. `answers` by prompt id."""
        return [self._grade(rollout, answers[rollout.prompt.id]) for rollout in rollouts]

    def _grade(self, rollout: Rollout, answer: dict[str, Any]) -> float:
        if rollout.truncated:
            return 0.0
        text = self._decode(rollout.response_ids)
        try:
            return float(scorer(rollout.prompt.grader)(text, answer))
        except Exception as error:  # third-party scorers raise anything on a response that they did not foresee
            if self.errors == 0:
                _log.warning("scorer %s failed on prompt %s: %r", rollout.prompt.grader, rollout.prompt.id, error)
            self.errors += 1
            return 0.0


@cache
def scorer(name: str) -> Scorer:
    """The scorer of a grader's name: `exact`, `math` or `reasoning_gym:<task>`. Raises ValueError for another."""
    if name.startswith("reasoning_gym:"):
        import reasoning_gym

        score = reasoning_gym.get_score_answer_fn(name.removeprefix("reasoning_gym:"))
        return lambda text, answer: score(answer=text, entry=answer) >= _FULL_SCORE
    if name == "exact":
        return lambda text, answer: text.strip() == str(answer["answer"]).strip()
    if name == "math":
        from math_verify import parse, verify

        return lambda text, answer: bool(verify(parse(str(answer["answer"])), parse(text)))
    raise ValueError(f"unknown grader {name!r}; known: exact, math, reasoning_gym:<task>")
