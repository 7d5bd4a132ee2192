"""TraPO (arXiv 2512.13106): the policy learns from unlabeled questions whose pass rates develop as labeled ones' do."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tempo_megatron.algorithms.advantages import equal_up_to_rounding
from tempo_megatron.algorithms.experience import Experience
from tempo_megatron.algorithms.methods.base import MethodSettings, TrapoSettings
from tempo_megatron.algorithms.methods.grpo import Grpo


class Trapo(Grpo):
    """The policy learns from labeled rollouts, and from those of selected unlabeled questions.

    - Reward: verified correctness of a labeled row. Of an unlabeled row, 1 for an answer that is more frequent than
      every other answer to its prompt, else 0.
    - Selection: unlabeled questions whose pass rates resemble those of reliable questions (`select_questions`).
    - Advantage: relative to the group.
    - Loss: PPO's clip per token.
    """

    settings: ClassVar = {**Grpo.settings, "policy.learns_from": "both"}
    needs = frozenset({"votes", "pass_rates"})

    def rewards(self, experience: Experience, settings: MethodSettings) -> Float[Tensor, " rows"]:
        return torch.where(experience.labeled, experience.verified, experience.needed_votes().unique_majority.float())

    def learning_rows(self, experience: Experience, settings: MethodSettings) -> Bool[Tensor, " rows"]:
        pass_rates, labeled = experience.needed_pass_rates(), experience.labeled
        prompts = experience.prompts.tolist()
        first_rows = {prompts[row]: row for row in reversed(range(len(prompts))) if not labeled[row]}
        questions = sorted(first_rows.values())
        selected = select_questions(pass_rates.rows[questions], pass_rates.reliable, settings.trapo)
        chosen = {prompts[row] for row, is_selected in zip(questions, selected.tolist(), strict=True) if is_selected}
        return labeled | torch.tensor([prompt in chosen for prompt in prompts])


def select_questions(
    questions: Float[Tensor, "questions passes"],
    reliable: Float[Tensor, "reliable passes"],
    settings: TrapoSettings,
) -> Bool[Tensor, " questions"]:
    """Returns which unlabeled questions of a batch are selected, from their pass rates (NaN after the last one).

    Those with a similarity of at least `similarity` are selected, and the share `top_share` with the highest ones, at
    least one question unless the share is 0. Of equal similarities the first question's counts as higher. A question
    without a similarity is never selected.
    """
    scores = similarities(questions, reliable, settings)
    comparable = ~scores.isnan()
    best = int(settings.top_share * float(comparable.sum()) + 1e-6)
    if settings.top_share and comparable.any():
        best = max(best, 1)
    order = torch.where(comparable, scores, -torch.inf).argsort(descending=True, stable=True)
    is_best = torch.zeros_like(comparable)
    is_best[order[:best]] = True
    return comparable & (is_best | (scores >= settings.similarity))


def similarities(
    questions: Float[Tensor, "questions passes"],
    reliable: Float[Tensor, "reliable passes"],
    settings: TrapoSettings,
) -> Float[Tensor, " questions"]:
    """Returns how similar each question's pass rates are to those of reliable questions, from -1 to 1.

    The first k pass rates are compared, where k is the number that the question and all reliable questions have. The
    similarity is NaN where k is below `warm_up_passes`. `comparison` selects its formula:

    - "centered": the mean over reliable questions of the correlation of pass rates, 0 where either is constant.
    - "mean": the cosine with the mean of the reliable pass rates, 0 where either is 0 throughout.
    """
    scores = torch.full((len(questions),), torch.nan, dtype=questions.dtype)
    if not len(reliable):
        return scores
    counts = _lengths(questions).clamp_max(_lengths(reliable).min())
    for k in counts.unique().tolist():
        if k >= settings.warm_up_passes:
            compared, references = questions[counts == k, :k], reliable[:, :k]
            if settings.comparison == "centered":
                reference = _unit(_centered(references)).mean(0)
                scores[counts == k] = _unit(_centered(compared)) @ reference
            else:
                scores[counts == k] = _unit(compared) @ _unit(references.mean(0, keepdim=True))[0]
    return scores


def _lengths(pass_rates: Float[Tensor, "questions passes"]) -> Tensor:
    """Returns the number of pass rates of each question."""
    return (~pass_rates.isnan()).sum(1)


def _centered(pass_rates: Float[Tensor, "questions passes"]) -> Float[Tensor, "questions passes"]:
    """Returns pass rates less their mean, exactly 0 where they are equal up to rounding."""
    constant = torch.tensor([equal_up_to_rounding(question) for question in pass_rates])
    return torch.where(constant[:, None], 0.0, pass_rates - pass_rates.mean(1, keepdim=True))


def _unit(vectors: Float[Tensor, "questions passes"]) -> Float[Tensor, "questions passes"]:
    """Returns vectors of length 1, or 0 for vectors of length 0."""
    norms = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(norms == 0, 1.0, norms)
