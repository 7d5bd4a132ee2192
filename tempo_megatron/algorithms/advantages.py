"""Advantages from rewards: with a critic's baseline, by generalized advantage estimation, or relative to a group.

The response of a row is one contiguous range of its `response_mask`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tempo_megatron.algorithms.experience import last_response_position, values_before

_ROUNDING = 16
"""Equal numbers may differ by this many units in the last place of the largest magnitude."""


def value_baseline_advantages(
    rewards: Float[Tensor, " rows"],
    values: Float[Tensor, "rows sequence"],
    response_mask: Bool[Tensor, "rows sequence"],
    baseline: str = "before_token",
) -> Float[Tensor, "rows sequence"]:
    """Returns A_t = R - b_t (arXiv 2604.19295), 0 outside the response.

    The baseline b_t of "before_token" is V(x, y_<t), which has not seen token t and is unbiased. That of "after_token"
    is V(x, y_<=t), the paper's literal form. It depends on the action, so it is biased.
    """
    baselines = values_before(values) if baseline == "before_token" else values
    return torch.where(response_mask, rewards[:, None] - baselines, 0.0)


def generalized_advantage_estimation(
    rewards: Float[Tensor, " rows"],
    values: Float[Tensor, "rows sequence"],
    response_mask: Bool[Tensor, "rows sequence"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "rows sequence"]:
    """Returns generalized advantage estimates (arXiv 1506.02438, equation 16) for a reward after the last token.

    With s_t = V(x, y_<t): delta_t = r_t + gamma * s_(t+1) - s_t, where r_T = R, s_(T+1) = 0 and all other r_t = 0.
    A_t = delta_t + gamma * gae_lambda * A_(t+1). The result is 0 outside the response.
    """
    states = torch.where(response_mask, values_before(values), 0.0)
    is_last_token = torch.nn.functional.one_hot(last_response_position(response_mask), response_mask.shape[1]).bool()
    token_rewards = torch.where(is_last_token & response_mask, rewards[:, None], 0.0)
    next_states = torch.nn.functional.pad(states[:, 1:], (0, 1))
    deltas = (token_rewards + gamma * next_states - states) * response_mask
    advantages = torch.zeros_like(deltas)
    advantage = torch.zeros_like(rewards)
    for column in range(deltas.shape[1] - 1, -1, -1):
        advantage = deltas[:, column] + gamma * gae_lambda * advantage
        advantages[:, column] = advantage
    return torch.where(response_mask, advantages, 0.0)


def group_relative_advantages(
    rewards: Float[Tensor, " rows"],
    groups: Int64[Tensor, " rows"],
    response_mask: Bool[Tensor, "rows sequence"],
    epsilon: float = 1e-6,
) -> Float[Tensor, "rows sequence"]:
    """Returns A = (R - mean) / (deviation + epsilon) within each group at every token (GRPO, arXiv 2402.03300).

    Rows with the same number in `groups` answer one prompt. The deviation is the sample deviation (n - 1). The
    advantage is exactly 0 in a group of one, and in a group whose rewards are equal up to rounding. A reward that is
    not finite makes the advantage of its row NaN and is left out of its group.
    """
    advantages = torch.zeros_like(rewards).masked_fill(~rewards.isfinite(), torch.nan)
    for group in groups.unique():
        members = (groups == group) & rewards.isfinite()
        group_rewards = rewards[members]
        if not equal_up_to_rounding(group_rewards):
            advantages[members] = (group_rewards - group_rewards.mean()) / (group_rewards.std() + epsilon)
    return torch.where(response_mask, advantages[:, None], 0.0)


def whiten(
    advantages: Float[Tensor, "rows sequence"], mask: Bool[Tensor, "rows sequence"], epsilon: float = 1e-8
) -> Float[Tensor, "rows sequence"]:
    """Returns advantages shifted and scaled to mean 0 and variance 1 over the mask, and 0 outside it.

    Advantages that are equal up to rounding become exactly 0. Advantages that are not finite stay as they are and are
    left out of mean and variance.
    """
    finite = mask & advantages.isfinite()
    selected = advantages[finite]
    whitened = torch.where(mask, advantages, 0.0)
    if equal_up_to_rounding(selected):
        return whitened.masked_fill(finite, 0.0)
    variance, mean = torch.var_mean(selected, correction=0)
    return torch.where(finite, (advantages - mean) * torch.rsqrt(variance + epsilon), whitened)


def equal_up_to_rounding(numbers: Float[Tensor, " n"]) -> bool:
    """Returns whether all numbers are equal up to rounding. Fewer than two numbers always are."""
    if len(numbers) < 2:
        return True
    spread = numbers.max() - numbers.min()
    return bool(spread <= _ROUNDING * torch.finfo(numbers.dtype).eps * numbers.abs().max())
