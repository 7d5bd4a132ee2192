"""From rewards to advantages: by a critic, by generalized estimation, by a group of responses.

Rows are padded sequences; a row's response is one unbroken stretch of its `response_mask`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tempo_megatron.algorithms.experience import last_response_position, values_before

_ROUNDING = 16
"""units in the last place, of the largest magnitude, by which equal numbers may differ after rounding"""


def value_baseline_advantages(
    rewards: Tensor, values: Tensor, response_mask: Tensor, baseline: str = "before_token"
) -> Tensor:
    """A_t = R - b_t (arXiv 2604.19295), [rows, sequence], 0 outside the response.

    rewards [rows]; values [rows, sequence]. The baseline of token t is V(x, y_<t), which has not seen it
    ("before_token", unbiased), or V(x, y_<=t) ("after_token", the paper's literal form, biased: it depends on the
    action).
    """
    baselines = values_before(values) if baseline == "before_token" else values
    return torch.where(response_mask, rewards[:, None] - baselines, 0.0)


def generalized_advantage_estimation(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalized advantage estimation (arXiv 1506.02438, equation 16) of a reward given after the last token.

    With s_t = V(x, y_<t): delta_t = r_t + gamma * s_(t+1) - s_t, where r_T = R, s_(T+1) = 0 and all other r_t = 0;
    A_t = delta_t + gamma * gae_lambda * A_(t+1). rewards [rows]; values and result [rows, sequence].
    """
    states = torch.where(response_mask, values_before(values), 0.0)
    at_end = torch.nn.functional.one_hot(last_response_position(response_mask), response_mask.shape[1]).bool()
    arriving = torch.where(at_end & response_mask, rewards[:, None], 0.0)
    following = torch.nn.functional.pad(states[:, 1:], (0, 1))
    deltas = (arriving + gamma * following - states) * response_mask
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(rewards)
    for column in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, column] + gamma * gae_lambda * running
        advantages[:, column] = running
    return torch.where(response_mask, advantages, 0.0)


def group_relative_advantages(rewards: Tensor, groups: Tensor, response_mask: Tensor, epsilon: float = 1e-6) -> Tensor:
    """A = (R - mean) / (deviation + epsilon) over the responses to one prompt (GRPO, arXiv 2402.03300), at every token.

    rewards [rows]; groups [rows] int64. The deviation is the sample's (n - 1); a group of one, or of rewards that are
    equal up to rounding, has advantage exactly 0. A reward that is not finite makes its own row's advantage NaN and
    takes no part in its group.
    """
    advantages = torch.where(rewards.isfinite(), 0.0, torch.nan)
    for group in groups.unique():
        members = (groups == group) & rewards.isfinite()
        chosen = rewards[members]
        if not equal_up_to_rounding(chosen):
            advantages[members] = (chosen - chosen.mean()) / (chosen.std() + epsilon)
    return torch.where(response_mask, advantages[:, None], 0.0)


def whiten(advantages: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Advantages [rows, sequence] shifted and scaled to mean 0 and variance 1 over the mask; 0 outside it.

    Advantages that are equal up to rounding become exactly 0. Those that are not finite stay as they are, and mean and
    variance leave them out.
    """
    finite = mask & advantages.isfinite()
    chosen = advantages[finite]
    whitened = torch.where(mask, advantages, 0.0)
    if equal_up_to_rounding(chosen):
        return whitened.masked_fill(finite, 0.0)
    variance, mean = torch.var_mean(chosen, correction=0)
    return torch.where(finite, (advantages - mean) * torch.rsqrt(variance + epsilon), whitened)


def equal_up_to_rounding(numbers: Tensor) -> bool:
    """Whether all numbers [n] are one number but for rounding; fewer than two always are."""
    if len(numbers) < 2:
        return True
    spread = numbers.max() - numbers.min()
    return bool(spread <= _ROUNDING * torch.finfo(numbers.dtype).eps * numbers.abs().max())
