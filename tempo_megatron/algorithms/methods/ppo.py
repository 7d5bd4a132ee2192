"""PPO with verifiable rewards: the RLVR that initializes policy and critic, and a baseline method."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tempo_megatron.algorithms.advantages import generalized_advantage_estimation
from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.base import Method, MethodSettings


class Ppo(Method):
    """Policy and critic learn from labeled rollouts.

    - Reward: verified correctness.
    - Advantage: GAE, whitened.
    - Loss: PPO's clip per token.
    - Critic: learns the returns A_t + V(x, y_<t), and the reward itself after the last token, so that TEMPO can start
      from it.
    """

    settings: ClassVar = {
        "critic.training": "returns",
        "policy.learns_from": "labeled",
        "policy.loss": "ppo",
        "policy.average_over": "tokens",
        "policy.clip_range_low": 0.2,
        "policy.clip_range_high": 0.2,
        "policy.whiten_advantages": True,
    }
    needs = frozenset({"values", "correct"})

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        return experience.verified

    def advantages(
        self, experience: Experience, rewards: Float[Tensor, " rows"], settings: MethodSettings
    ) -> Float[Tensor, "rows sequence"]:
        return generalized_advantage_estimation(
            rewards,
            experience.needed_values(),
            experience.response_mask,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
        )
