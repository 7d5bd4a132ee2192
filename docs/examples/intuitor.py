"""Intuitor (arXiv 2505.19590), as a method in a package of your own. It rewards the policy for its certainty.

Run it with `PYTHONPATH=docs/examples tempo train recipes/demo.yaml method=intuitor.Intuitor`.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.base import MethodSettings
from tempo_megatron.algorithms.methods.grpo import Grpo


class Intuitor(Grpo):
    """The policy learns from unlabeled rollouts.

    - Reward: self-certainty, the mean over the response's tokens of KL(uniform || p_t) (equation 3).
    - Advantage: relative to the group, as in GRPO.
    - Loss: PPO's clip per token, with a small KL penalty.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "unlabeled", "policy.kl_coefficient": 0.005}
    needs = frozenset({"self_certainty"})

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        certainty, mask = experience.statistics["self_certainty"], experience.response_mask
        return (certainty * mask).sum(1) / mask.sum(1).clamp_min(1)
