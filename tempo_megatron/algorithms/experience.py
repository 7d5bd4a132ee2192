"""The rollouts that a method computes rewards and advantages from, and the votes over their answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

STATISTICS = ("entropy", "self_certainty")
"""The names of the statistics of the policy's distribution at each token that a method may need."""


@dataclass(frozen=True)
class Votes:
    """Counts of the answers to each row's prompt. No label takes part."""

    count: Float32[Tensor, " rows"]
    """The number of responses to the prompt that give the row's answer, the row included; 1 without an answer."""
    total: Float32[Tensor, " rows"]
    """The number of responses to the prompt, including those that are sampled for the vote alone."""
    majority: Bool[Tensor, " rows"]
    """Whether the row gives its prompt's most frequent answer. Of equally frequent answers the earliest wins."""
    runner_up: Float32[Tensor, " rows"]
    """The number of responses to the prompt that give its second most frequent answer; 0 without a second answer."""
    answers: Int64[Tensor, " rows"]
    """A number of the row's answer, equal for equivalent answers to one prompt; -1 without an answer."""

    @property
    def unique_majority(self) -> Bool[Tensor, " rows"]:
        """Whether the row gives an answer that is more frequent than every other answer to its prompt."""
        return self.majority & (self.count > self.runner_up)


@dataclass(frozen=True)
class PassRates:
    """Pass rates of questions, in the order in which policy steps had them, this one included; NaN after the last.

    A pass rate is the share of a question's responses that are right. Where it is not labeled, the share of responses
    that give the vote's `unique_majority`.
    """

    rows: Float64[Tensor, "rows passes"]
    """Those of each row's question."""
    reliable: Float64[Tensor, "questions passes"]
    """Those of labeled questions, and of the unlabeled ones that were selected when a policy step last had them."""


@dataclass(frozen=True)
class Experience:
    """Rollouts of one policy step as padded rows.

    `values`, `votes`, `pass_rates` and each of `statistics` are present if the method `needs` them.
    """

    response_mask: Bool[Tensor, "rows sequence"]
    """True at response tokens."""
    truncated: Bool[Tensor, " rows"]
    """Whether the response was cut at the token limit."""
    prompts: Int64[Tensor, " rows"]
    """Rows with the same number answer one prompt."""
    labeled: Bool[Tensor, " rows"]
    """Whether the prompt has a label."""
    correct: Float32[Tensor, " rows"]
    """Verified correctness in {0, 1}, NaN where the row is not labeled."""
    wrong: float = 0.0
    """The critic's target for a wrong answer. The target for a right answer is 1."""
    values: Float32[Tensor, "rows sequence"] | None = None
    """The critic's value after reading the tokens up to and including each position, in the scale of its targets."""
    votes: Votes | None = None
    pass_rates: PassRates | None = None
    statistics: dict[str, Float32[Tensor, "rows sequence"]] = field(default_factory=dict)
    """Statistics of the policy before the step, by name, such as `self_certainty`."""

    @property
    def verified(self) -> Float32[Tensor, " rows"]:
        """Correctness in the scale of the critic's targets, NaN where the row is not labeled."""
        return correctness_to_values(self.correct, self.wrong)

    def needed_values(self) -> Float32[Tensor, "rows sequence"]:
        """Returns `values`. Raises ValueError if the method does not name them in `needs`."""
        if self.values is None:
            raise ValueError("this method reads values: it must name 'values' in its `needs`")
        return self.values

    def needed_votes(self) -> Votes:
        """Returns `votes`. Raises ValueError if the method does not name them in `needs`."""
        if self.votes is None:
            raise ValueError("this method reads votes: it must name 'votes' in its `needs`")
        return self.votes

    def needed_pass_rates(self) -> PassRates:
        """Returns `pass_rates`. Raises ValueError if the method does not name them in `needs`."""
        if self.pass_rates is None:
            raise ValueError("this method reads pass rates: it must name 'pass_rates' in its `needs`")
        return self.pass_rates


def correctness_to_values(correct: Float[Tensor, ...], wrong: float) -> Float[Tensor, ...]:
    """Returns correctness (0 wrong, 1 right) in the scale of the critic's targets, `wrong` to 1."""
    return wrong + (1 - wrong) * correct


def values_to_correctness(values: Float[Tensor, ...], wrong: float) -> Float[Tensor, ...]:
    """Returns values in the scale of the critic's targets, `wrong` to 1, as correctness: 0 wrong, 1 right."""
    return (values - wrong) / (1 - wrong)


def last_response_position(response_mask: Bool[Tensor, "rows sequence"]) -> Int64[Tensor, " rows"]:
    """Returns the position of each row's last response token, 0 for a row without one."""
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    return (positions * response_mask).amax(1)


def last_value(
    values: Float[Tensor, "rows sequence"], response_mask: Bool[Tensor, "rows sequence"]
) -> Float[Tensor, " rows"]:
    """Returns V(x, y_1..T), the value after the last response token."""
    return values.gather(1, last_response_position(response_mask)[:, None])[:, 0]


def values_before(values: Float[Tensor, "rows sequence"]) -> Float[Tensor, "rows sequence"]:
    """Returns V(x, y_<t) in column t, the value of the state in which token t is chosen. Column 0 holds 0."""
    return torch.nn.functional.pad(values[:, :-1], (1, 0))


def count_votes(
    clusters: Int64[Tensor, " rows"], answered: Bool[Tensor, " rows"], prompts: Int64[Tensor, " rows"]
) -> Votes:
    """Counts votes from clusters of equivalent answers.

    Rows of one prompt with the same number in `clusters` give the same answer. A response that is not `answered` is a
    cluster of its own and never the majority. Of equally frequent answers that of the first row wins.
    """
    rows = len(clusters)
    _, prompt = prompts.unique(return_inverse=True)
    _, cluster = torch.stack([prompt, clusters]).unique(dim=1, return_inverse=True)
    count = cluster.bincount()[cluster]
    first = torch.full((rows,), rows).scatter_reduce(0, cluster, torch.arange(rows), "amin")[cluster]
    # One number orders the answers to a prompt: by count, and among equal counts the earliest first.
    rank = torch.where(answered, count * rows - first, -1)
    best = torch.full((rows,), -1).scatter_reduce(0, prompt, rank, "amax")[prompt]
    majority = answered & (rank == best)
    others = torch.where(answered & ~majority, count, 0)
    runner_up = torch.zeros(rows, dtype=torch.int64).scatter_reduce(0, prompt, others, "amax")[prompt]
    answers = torch.where(answered, cluster, -1)
    return Votes(count.float(), prompt.bincount()[prompt].float(), majority, runner_up.float(), answers)
