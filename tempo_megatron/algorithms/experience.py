"""What a method may look at, and what it makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

STATISTICS = ("entropy", "self_certainty")
"""what an Experience may have of the policy's distribution at each token"""


@dataclass(frozen=True)
class Votes:
    """The answers of each row's prompt, counted without any label. All [rows]."""

    count: Tensor
    """fp32: how many of the prompt's responses give the row's answer, itself included; 1 without an answer"""
    total: Tensor
    """fp32: how many responses the prompt has, those sampled for the vote alone included"""
    majority: Tensor
    """bool: the row gives its prompt's most frequent answer; of equally frequent ones the first given counts"""


@dataclass(frozen=True)
class Experience:
    """Rollouts of one policy step as padded rows; token columns are [rows, sequence].

    `values[i, t]` is the critic's value once it has read tokens 0..t of row i, in the scale of its targets: 1 for a
    right answer and `wrong` for a wrong one. `values`, `votes` and each of `statistics` are there where a method
    `needs` them.
    """

    response_mask: Tensor
    """bool, True at response tokens"""
    truncated: Tensor
    """[rows] bool: cut at the token limit"""
    prompts: Tensor
    """[rows] int64: rows of one number answer one prompt"""
    labeled: Tensor
    """[rows] bool"""
    correct: Tensor
    """[rows] fp32 in {0, 1}; NaN where the row is not labeled"""
    wrong: float = 0.0
    values: Tensor | None = None
    votes: Votes | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """by name, e.g. `self_certainty`: [rows, sequence] fp32, of the policy before the step"""

    @property
    def verified(self) -> Tensor:
        """Correctness in the scale of the critic's targets, [rows]; NaN where the row is not labeled."""
        return self.wrong + (1 - self.wrong) * self.correct

    def needed_values(self) -> Tensor:
        if self.values is None:
            raise ValueError("this method reads values: it must name 'values' in its `needs`")
        return self.values

    def needed_votes(self) -> Votes:
        if self.votes is None:
            raise ValueError("this method reads votes: it must name 'votes' in its `needs`")
        return self.votes


def last_response_position(response_mask: Tensor) -> Tensor:
    """Index of each row's last response token, [rows] int64; 0 for a row without one."""
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    return (positions * response_mask).amax(1)


def last_value(values: Tensor, response_mask: Tensor) -> Tensor:
    """V(x, y_1..T), the value after the last response token, [rows]."""
    return values.gather(1, last_response_position(response_mask)[:, None])[:, 0]


def values_before(values: Tensor) -> Tensor:
    """Column t holds V(x, y_<t), the value of the state in which token t is chosen; column 0 holds 0."""
    return torch.nn.functional.pad(values[:, :-1], (1, 0))


def count_votes(clusters: Tensor, answered: Tensor, prompts: Tensor) -> Votes:
    """Votes from clusters of equivalent answers; a cluster's number means nothing to another prompt's rows.

    clusters [rows] int64; answered [rows] bool: a response without an answer is a cluster of its own, and never the
    majority; prompts [rows] int64. Rows are in the order in which the answers count as given.
    """
    rows = len(clusters)
    _, prompt = prompts.unique(return_inverse=True)
    _, cluster = torch.stack([prompt, clusters]).unique(dim=1, return_inverse=True)
    count = cluster.bincount()[cluster]
    first = torch.full((rows,), rows).scatter_reduce(0, cluster, torch.arange(rows), "amin")[cluster]
    # Above every other count, and of equal counts the earliest: one number that orders a prompt's answers.
    rank = torch.where(answered, count * rows - first, -1)
    best = torch.full((rows,), -1).scatter_reduce(0, prompt, rank, "amax")[prompt]
    return Votes(count.float(), prompt.bincount()[prompt].float(), answered & (rank == best))
