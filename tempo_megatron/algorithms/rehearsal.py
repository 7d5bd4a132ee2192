"""A method tried on a few made-up rows, labeled or not, before a run starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tempo_megatron.algorithms.experience import Experience, Votes
from tempo_megatron.algorithms.methods.base import Method, Settings

_PROMPTS, _RESPONSES, _WIDTH = 2, 3, 6


@dataclass(frozen=True)
class Rehearsal:
    """What came of it. `failure`: what the method raised, in words, else empty."""

    failure: str = ""
    finite: bool = True
    """all rewards and advantages are"""
    follows_values: bool = False
    """whether the critic's values change the reward of a row that is not labeled"""


def rehearse(method: Method, settings: Settings, *, labeled: bool, unlabeled: bool, wrong: float) -> Rehearsal:
    """Let the method judge rows of the kinds that its policy will learn from.

    The rows have what the method `needs`, and NaN for the correctness of those that are not labeled.
    """
    experience = _experience(method, labeled, unlabeled, wrong)
    try:
        rewards = method.rewards(experience)
        advantages = method.advantages(experience, rewards, settings)
        others = method.rewards(_with_other_values(experience)) if "values" in method.needs else rewards
    except Exception as error:  # whatever the code of a user's package raises
        return Rehearsal(failure=f"{type(error).__name__}: {error}")
    hidden = ~experience.labeled
    return Rehearsal(
        finite=bool(rewards.isfinite().all() and advantages.isfinite().all()),
        follows_values=not torch.equal(rewards[hidden].nan_to_num(), others[hidden].nan_to_num()),
    )


def _experience(method: Method, labeled: bool, unlabeled: bool, wrong: float) -> Experience:
    """Prompts of each kind with a few responses of different lengths, all numbers different."""
    kinds = [True] * (_PROMPTS * labeled) + [False] * (_PROMPTS * unlabeled)
    rows = len(kinds) * _RESPONSES
    is_labeled = torch.tensor(kinds).repeat_interleave(_RESPONSES)
    number = torch.arange(rows)
    right = (number % 2).float()
    positions = torch.arange(_WIDTH)
    ends = 3 + number % (_WIDTH - 2)
    columns = _columns(rows)
    size = torch.full((rows,), float(_RESPONSES))
    first = number % _RESPONSES == 0
    return Experience(
        response_mask=(positions >= 1) & (positions < ends[:, None]),
        truncated=ends == _WIDTH,
        prompts=number // _RESPONSES,
        labeled=is_labeled,
        correct=torch.where(is_labeled, right, torch.nan),
        wrong=wrong,
        values=columns if "values" in method.needs else None,
        votes=Votes(torch.where(first, 1.0, size - 1), size, ~first) if "votes" in method.needs else None,
        statistics={name: columns + 1 for name in method.needs - {"values", "votes", "correct"}},
    )


def _columns(rows: int) -> Tensor:
    """A number in (0, 1) for each token, [rows, sequence], in an order that neither grows nor repeats."""
    count = rows * _WIDTH
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return ((shuffled + 1) / (count + 1)).reshape(rows, _WIDTH)


def _with_other_values(experience: Experience) -> Experience:
    return replace(experience, values=1 - experience.needed_values())
