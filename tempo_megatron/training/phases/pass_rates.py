"""The pass rates of each question over a run, for methods that compare how questions are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tempo_megatron.algorithms.experience import PassRates, Votes
from tempo_megatron.data.types import Rollout


@dataclass
class PassRateHistory:
    """Pass rates by prompt id, one for each policy step that had the question, on every rank the same.

    A question that a policy step has twice has one pass rate there, that of all its responses.
    """

    labeled: dict[str, list[float]] = field(default_factory=dict)
    """Shares of responses that are verified as right."""
    unlabeled: dict[str, list[float]] = field(default_factory=dict)
    """Shares of responses with the answer that is more frequent than every other; 0 without such an answer."""
    reliable: list[str] = field(default_factory=list)
    """The unlabeled questions that were selected when a policy step last had them."""

    def observe(self, rollouts: Sequence[Rollout], correct: Sequence[float], votes: Votes) -> PassRates:
        """Add the pass rates of a policy step's questions; return those of its rows and of the reliable questions.

        `correct` is NaN where a rollout is not labeled.
        """
        labeled = ~torch.tensor(correct).isnan()
        passes = torch.where(labeled, torch.tensor(correct), votes.unique_majority.float()).tolist()
        histories = [self.labeled if is_labeled else self.unlabeled for is_labeled in labeled.tolist()]
        by_question: dict[str, list[float]] = {}
        for rollout, passed in zip(rollouts, passes, strict=True):
            by_question.setdefault(rollout.prompt.id, []).append(passed)
        owners = {rollout.prompt.id: history for rollout, history in zip(rollouts, histories, strict=True)}
        for prompt_id, responses in by_question.items():
            owners[prompt_id].setdefault(prompt_id, []).append(sum(responses) / len(responses))
        rows = [history[rollout.prompt.id] for rollout, history in zip(rollouts, histories, strict=True)]
        reliable = [*self.labeled.values(), *(self.unlabeled[prompt_id] for prompt_id in self.reliable)]
        width = max(map(len, [*rows, *reliable]))
        return PassRates(rows=_padded(rows, width), reliable=_padded(reliable, width))

    def select(self, rollouts: Sequence[Rollout], learning_rows: Bool[Tensor, " rows"]) -> float:
        """Note which unlabeled questions of a policy step were selected; return their share of its unlabeled ones."""
        selected = {
            rollout.prompt.id: bool(learns)
            for rollout, learns in zip(rollouts, learning_rows, strict=True)
            if rollout.prompt.id in self.unlabeled
        }
        self.reliable = [prompt_id for prompt_id in self.reliable if prompt_id not in selected]
        self.reliable += [prompt_id for prompt_id, is_selected in selected.items() if is_selected]
        return sum(selected.values()) / len(selected)

    def copy(self) -> PassRateHistory:
        """Return a copy that later steps do not change."""
        return PassRateHistory(_copied(self.labeled), _copied(self.unlabeled), list(self.reliable))

    @classmethod
    def from_json(cls, json_fields: Mapping[str, Any]) -> PassRateHistory:
        return cls(**json_fields)


def _copied(pass_rates: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {prompt_id: list(rates) for prompt_id, rates in pass_rates.items()}


def _padded(questions: Sequence[Sequence[float]], width: int) -> Float64[Tensor, "questions passes"]:
    """Return one row for each question, with NaN after its last pass rate."""
    padded = torch.full((len(questions), width), torch.nan, dtype=torch.float64)
    for row, rates in enumerate(questions):
        padded[row, : len(rates)] = torch.tensor(rates, dtype=torch.float64)
    return padded
