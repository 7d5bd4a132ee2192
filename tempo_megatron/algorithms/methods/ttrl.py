"""TTRL (arXiv 2504.16084): treats the majority answer as correct. It needs no labels and no critic."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.base import MethodSettings
from tempo_megatron.algorithms.methods.grpo import Grpo


class Ttrl(Grpo):
    """The policy learns from unlabeled rollouts.

    - Reward: 1 for the most frequent answer among the prompt's votes (`loop.votes_per_prompt`), 0 for any other answer
      and for none.
    - Advantage: relative to the group.
    - Loss: PPO's clip per token, with a small KL penalty.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "unlabeled", "policy.kl_coefficient": 0.001}
    needs = frozenset({"votes"})

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        return experience.needed_votes().majority.float()
