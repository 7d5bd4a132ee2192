"""GRPO (arXiv 2402.03300): verified rewards, compared among the responses to a prompt. It needs no critic."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tempo_megatron.algorithms.advantages import group_relative_advantages
from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.base import Method, MethodSettings


class Grpo(Method):
    """The policy learns from labeled rollouts.

    - Reward: verified correctness.
    - Advantage: (R - mean) / deviation within the group.
    - Loss: PPO's clip per token.
    """

    settings: ClassVar = {
        "critic.training": "none",
        "policy.learns_from": "labeled",
        "policy.loss": "ppo",
        "policy.average_over": "tokens",
        "policy.clip_range_low": 0.2,
        "policy.clip_range_high": 0.2,
    }
    needs = frozenset({"correct"})
    compares_responses = True

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        return experience.verified

    def advantages(
        self, experience: Experience, rewards: Float[Tensor, " rows"], settings: MethodSettings
    ) -> Float[Tensor, "rows sequence"]:
        return group_relative_advantages(rewards, experience.prompts, experience.response_mask)
