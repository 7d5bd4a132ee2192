"""EMPO (arXiv 2504.05812): the more responses agree with an answer, the more it is worth. No label, no critic."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.grpo import Grpo


class Empo(Grpo):
    """Unlabeled rollouts train the policy.

    Reward: the share of the prompt's responses in the row's cluster of equivalent answers; a response without an answer
    is a cluster of its own. Clusters are a rule verifier's or a judge model's (`grading.cluster_by`). Advantage: within
    the group. Loss: PPO's clip a token.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "unlabeled"}
    needs = frozenset({"votes"})

    def rewards(self, experience: Experience) -> Tensor:
        votes = experience.needed_votes()
        return votes.count / votes.total
