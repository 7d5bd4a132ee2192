"""TTRL (arXiv 2504.16084): the majority answer is taken for the truth. No label, no critic."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.grpo import Grpo


class Ttrl(Grpo):
    """Unlabeled rollouts train the policy.

    Reward: 1 for the most frequent answer among the prompt's votes (`loop.votes_per_prompt`), 0 for any other and for
    none. Advantage: within the group. Loss: PPO's clip a token, with a small KL penalty.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "unlabeled", "policy.kl_coefficient": 0.001}
    needs = frozenset({"votes"})

    def rewards(self, experience: Experience) -> Tensor:
        return experience.needed_votes().majority.float()
