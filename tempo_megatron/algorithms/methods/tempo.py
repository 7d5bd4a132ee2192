"""TEMPO (arXiv 2604.19295): the reward is a calibrated critic's value, and so is the baseline."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tempo_megatron.algorithms.advantages import value_baseline_advantages
from tempo_megatron.algorithms.experience import Experience, last_value
from tempo_megatron.algorithms.methods.base import Method, MethodSettings


class Tempo(Method):
    """The paper's algorithm: the critic learns from labeled rollouts, the policy from unlabeled ones.

    - Reward: R = V(x, y_1..T), the value after the last token. It is the verified correctness of a labeled row, if the
      recipe lets the policy learn from labeled rows.
    - Advantage: A_t = R - V(x, y_<t).
    - Loss: GSPO.
    """

    settings: ClassVar = {"critic.training": "calibrated", "policy.learns_from": "unlabeled", "policy.loss": "gspo"}
    needs = frozenset({"values"})

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        final_values = last_value(experience.needed_values(), experience.response_mask)
        return torch.where(experience.labeled, experience.verified, final_values)

    def advantages(
        self, experience: Experience, rewards: Float[Tensor, " rows"], settings: MethodSettings
    ) -> Float[Tensor, "rows sequence"]:
        return value_baseline_advantages(
            rewards, experience.needed_values(), experience.response_mask, settings.baseline
        )


class FrozenCritic(Tempo):
    """The paper's ablation: TEMPO with a critic that does not change after the first iteration."""

    settings: ClassVar = {**Tempo.settings, "critic.training": "frozen"}


class TempoReferenceCode(Tempo):
    """The authors' code where it differs from the paper, without its errors.

    - The policy learns from one mixed batch, with the true reward of labeled rows.
    - Advantages are whitened over the batch.
    - The critic's targets are -1 and 1.
    - Values are read before the critic is updated.
    - Labeled prompts whose responses all have the same score are replaced.

    Each of these is a setting of its own.
    """

    settings: ClassVar = {
        **Tempo.settings,
        "policy.learns_from": "both",
        "policy.whiten_advantages": True,
        "critic.target_range": "minus_one_one",
        "loop.order": "values_first",
        "loop.drop_uniform_prompts": True,
    }
