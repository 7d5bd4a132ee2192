"""EMPO (arXiv 2504.05812): rewards agreement with other responses. It needs no labels and no critic."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.base import MethodSettings
from tempo_megatron.algorithms.methods.grpo import Grpo


class Empo(Grpo):
    """The policy learns from unlabeled rollouts.

    - Reward: the share of the prompt's responses in the row's cluster of equivalent answers. A response without an
      answer is a cluster of its own. A rule verifier or a judge model forms the clusters (`grading.cluster_by`).
    - Advantage: relative to the group.
    - Loss: PPO's clip per token.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "unlabeled"}
    needs = frozenset({"votes"})

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        votes = experience.needed_votes()
        return votes.count / votes.total
