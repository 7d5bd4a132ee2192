"""Intuitor (arXiv 2505.19590), as a method in a package of your own: it rewards a policy for its self-certainty.

Run it with `PYTHONPATH=docs/examples tempo train recipes/demo.yaml method=intuitor.Intuitor`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.grpo import Grpo


class Intuitor(Grpo):
    """Unlabeled rollouts train the policy.

    Reward: self-certainty, the mean over the response's tokens of KL(uniform || p_t) (equation 3). Advantage: within
    the group, as in GRPO. Loss: PPO's clipped loss of each token, with a small KL penalty.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "unlabeled", "policy.kl_coefficient": 0.005}
    needs = frozenset({"self_certainty"})

    def rewards(self, experience: Experience) -> Tensor:
        certainty, mask = experience.statistics["self_certainty"], experience.response_mask
        return (certainty * mask).sum(1) / mask.sum(1).clamp_min(1)
