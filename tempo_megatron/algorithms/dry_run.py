"""Applies a method to a few synthetic rows before a run starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience, PassRates, Votes
from tempo_megatron.algorithms.methods.base import Method, MethodSettings

_PROMPTS, _RESPONSES, _WIDTH, _PASSES = 2, 3, 6, 20


@dataclass(frozen=True)
class DryRun:
    """The outcome of a dry run."""

    failure: str = ""
    """The error that the method raised, or empty."""
    finite: bool = True
    """Whether all rewards and advantages are finite."""
    follows_values: bool = False
    """Whether the critic's values change the reward of a row that is not labeled."""


def dry_run(method: Method, settings: MethodSettings, *, labeled: bool, unlabeled: bool, wrong: float) -> DryRun:
    """Computes rewards and advantages of labeled rows, unlabeled rows or both, and checks them.

    The rows have what the method `needs`. The correctness of unlabeled rows is NaN.
    """
    experience = _experience(method, labeled, unlabeled, wrong)
    try:
        rewards = method.rewards(experience, settings)
        advantages = method.advantages(experience, rewards, settings)
        method.learning_rows(experience, settings)
        changed_rewards = rewards
        if "values" in method.needs:
            changed_rewards = method.rewards(_with_other_values(experience), settings)
    except Exception as error:  # A user's own method may raise anything.
        return DryRun(failure=f"{type(error).__name__}: {error}")
    unlabeled_rows = ~experience.labeled
    return DryRun(
        finite=bool(rewards.isfinite().all() and advantages.isfinite().all()),
        follows_values=not torch.equal(
            rewards[unlabeled_rows].nan_to_num(), changed_rewards[unlabeled_rows].nan_to_num()
        ),
    )


def _experience(method: Method, labeled: bool, unlabeled: bool, wrong: float) -> Experience:
    """Returns prompts of each kind with a few responses of different lengths. All numbers differ."""
    prompt_is_labeled = [True] * (_PROMPTS * labeled) + [False] * (_PROMPTS * unlabeled)
    rows = len(prompt_is_labeled) * _RESPONSES
    is_labeled = torch.tensor(prompt_is_labeled).repeat_interleave(_RESPONSES)
    row = torch.arange(rows)
    correct = (row % 2).float()
    positions = torch.arange(_WIDTH)
    ends = 3 + row % (_WIDTH - 2)
    columns = _columns(rows)
    group_size = torch.full((rows,), float(_RESPONSES))
    is_first_response = row % _RESPONSES == 0
    votes = Votes(
        count=torch.where(is_first_response, 1.0, group_size - 1),
        total=group_size,
        majority=~is_first_response,
        runner_up=torch.ones(rows),
        answers=2 * (row // _RESPONSES) + is_first_response,
    )
    pass_rates = (
        torch.linspace(0, 1, _PASSES, dtype=torch.float64) ** torch.arange(1, 1 + len(prompt_is_labeled))[:, None]
    )
    return Experience(
        response_mask=(positions >= 1) & (positions < ends[:, None]),
        truncated=ends == _WIDTH,
        prompts=row // _RESPONSES,
        labeled=is_labeled,
        correct=torch.where(is_labeled, correct, torch.nan),
        wrong=wrong,
        values=columns if "values" in method.needs else None,
        votes=votes if "votes" in method.needs else None,
        pass_rates=PassRates(pass_rates[row // _RESPONSES], pass_rates) if "pass_rates" in method.needs else None,
        statistics={name: columns + 1 for name in method.needs - {"values", "votes", "pass_rates", "correct"}},
    )


def _columns(rows: int) -> Float32[Tensor, "rows sequence"]:
    """Returns a different number in (0, 1) for each token, in random order."""
    count = rows * _WIDTH
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return ((shuffled + 1) / (count + 1)).reshape(rows, _WIDTH)


def _with_other_values(experience: Experience) -> Experience:
    return replace(experience, values=1 - experience.needed_values())
