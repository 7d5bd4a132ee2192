"""TEMPO (arXiv 2604.19295): a calibrated critic's judgment is the reward, its expectation the baseline."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tempo_megatron.algorithms.advantages import value_baseline_advantages
from tempo_megatron.algorithms.experience import Experience, last_value
from tempo_megatron.algorithms.methods.base import Method, Settings


class Tempo(Method):
    """The paper's algorithm: labeled rollouts calibrate the critic, unlabeled ones train the policy.

    Reward: R = V(x, y_1..T) after the last token; the verified correctness where a row is labeled, should the recipe
    let labeled rows train the policy. Advantage: A_t = R - V(x, y_<t). Loss: GSPO.
    """

    settings: ClassVar = {"critic.training": "calibrated", "policy.learns_from": "unlabeled", "policy.loss": "gspo"}
    needs = frozenset({"values"})

    def rewards(self, experience: Experience) -> Tensor:
        judged = last_value(experience.needed_values(), experience.response_mask)
        return torch.where(experience.labeled, experience.verified, judged)

    def advantages(self, experience: Experience, rewards: Tensor, settings: Settings) -> Tensor:
        return value_baseline_advantages(
            rewards, experience.needed_values(), experience.response_mask, settings.baseline
        )


class FrozenCritic(Tempo):
    """The paper's ablation: TEMPO whose critic stays as it was at the first iteration."""

    settings: ClassVar = {**Tempo.settings, "critic.training": "frozen"}


class TempoReferenceCode(Tempo):
    """The authors' code where it departs from the paper, but for its errors.

    One mixed batch a step: labeled rows train the policy by their true reward, advantages are whitened over the batch,
    the critic's targets are -1 and 1, values are read before the critic moves, and labeled prompts whose responses all
    score alike are replaced. Each of these is a setting of its own.
    """

    settings: ClassVar = {
        **Tempo.settings,
        "policy.learns_from": "both",
        "policy.whiten_advantages": True,
        "critic.target_range": "minus_one_one",
        "loop.order": "values_first",
        "loop.drop_uniform_prompts": True,
    }
