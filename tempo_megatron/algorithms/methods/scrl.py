"""SCRL (arXiv 2603.19880): the vote abstains where it is close, and rejects rare answers of unsure responses."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience, Votes
from tempo_megatron.algorithms.methods.base import MethodSettings, ScrlSettings
from tempo_megatron.algorithms.methods.grpo import Grpo

UNANSWERED = -1.0
"""The reward of a response without an answer, from the authors' code. The paper's formula has no case for it."""


class Scrl(Grpo):
    """The policy learns from unlabeled rollouts.

    - Reward: the answer's share of the votes for a positive label, its share below `negative_share` for a negative
      one, minus `entropy_penalty` times the answer's entropy above the prompt's mean (`label_rewards`).
    - Advantage: relative to the group.
    - Loss: PPO's clip per token, with a small KL penalty.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "unlabeled", "policy.kl_coefficient": 0.001}
    needs = frozenset({"votes", "entropy"})

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        votes, mask = experience.needed_votes(), experience.response_mask
        # In float64, means of equal entropies are equal, so that rounding does not decide about a label.
        entropy = experience.statistics["entropy"].double()
        excess = excess_entropy((entropy * mask).sum(1) / mask.sum(1).clamp_min(1), votes.answers, experience.prompts)
        return label_rewards(votes, excess, settings.scrl).float()


def excess_entropy(
    entropy: Float[Tensor, " rows"], answers: Int64[Tensor, " rows"], prompts: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Returns H(a) - H for each row: the mean entropy of the rows with its answer minus that of its prompt's rows.

    `entropy` is the mean over a response's tokens, in nats. Responses without an answer have one number in `answers`
    and count as one answer.
    """
    _, prompt = prompts.unique(return_inverse=True)
    _, answer = torch.stack([prompt, answers]).unique(dim=1, return_inverse=True)
    return _group_means(entropy, answer) - _group_means(entropy, prompt)


def label_rewards(votes: Votes, excess: Float[Tensor, " rows"], settings: ScrlSettings) -> Float[Tensor, " rows"]:
    """Returns R of each response, whose answer a has the share p(a) of the votes. `excess` is that of `excess_entropy`.

    - Positive label, R = p(a) - penalty * excess: a is the most frequent answer, p(a) >= `positive_share`, and p(a)
      exceeds the next answer's share by more than `margin`.
    - Negative label, R = p(a) - `negative_share` - penalty * excess: p(a) < `negative_share` and excess >= 0.
    - Any other answer: R = -penalty * excess.
    - No answer: R = -1.
    """
    count, total, runner_up = votes.count.double(), votes.total.double(), votes.runner_up.double()
    share, answered = count / total, votes.answers >= 0
    # Counts are compared, not shares: a lead of 2 votes of 10 must equal a margin of 0.2.
    positive = votes.majority & (count >= settings.positive_share * total)
    positive &= count - runner_up > settings.margin * total
    negative = ~positive & (count < settings.negative_share * total) & (excess >= 0)
    label_reward = torch.where(negative, share - settings.negative_share, torch.where(positive, share, 0.0))
    return torch.where(answered, label_reward - settings.entropy_penalty * excess, UNANSWERED)


def _group_means(numbers: Float[Tensor, " rows"], groups: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Returns the mean of each row's group. Groups are numbered from 0 without a gap."""
    sizes = groups.bincount()
    sums = torch.zeros(len(sizes), dtype=numbers.dtype).index_add(0, groups, numbers)
    return (sums / sizes)[groups]
