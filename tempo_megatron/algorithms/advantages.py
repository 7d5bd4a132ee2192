"""Rewards and advantages from a critic's values.

Rows are padded sequences. `values[i, t]` is the critic's value once it has read tokens 0..t of row i, and
`response_mask[i, t]` is True where token t belongs to the response.
"""

from __future__ import annotations

import torch
from torch import Tensor


def last_response_position(response_mask: Tensor) -> Tensor:
    """Index of each row's last response token, [rows] int64; 0 for a row without one."""
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    return (positions * response_mask).amax(1)


def rewards_and_advantages(
    values: Tensor,
    response_mask: Tensor,
    truncated: Tensor,
    *,
    baseline: str = "before_token",
    truncated_reward: str = "value",
    wrong: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """R = V(x, y_1..T) and A_t = R - b_t for every response token (arXiv 2604.19295).

    values [rows, sequence] fp32; response_mask [rows, sequence] bool; truncated [rows] bool. R is read after the last
    response token. The baseline b_t of token t is V(x, y_1..t-1), which has not seen it ("before_token", unbiased), or
    V(x, y_1..t) ("after_token", the paper's literal form, biased: it depends on the action). A truncated response gets
    its value as reward, that of a wrong answer, `wrong`, or leaves the loss ("value", "wrong", "mask").

    Returns rewards [rows], advantages [rows, sequence] (0 outside the response) and the mask of tokens to learn from.
    """
    rewards = values.gather(1, last_response_position(response_mask)[:, None])[:, 0]
    mask = response_mask
    if truncated_reward == "wrong":
        rewards = torch.where(truncated, wrong, rewards)
    elif truncated_reward == "mask":
        mask = response_mask & ~truncated[:, None]
    before = torch.nn.functional.pad(values[:, :-1], (1, 0))
    baselines = before if baseline == "before_token" else values
    return rewards, (rewards[:, None] - baselines) * mask, mask


def whiten(advantages: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Advantages [rows, sequence] shifted and scaled to mean 0 and variance 1 over the mask; 0 outside it."""
    chosen = advantages[mask]
    variance, mean = torch.var_mean(chosen, correction=0)
    return (advantages - mean) * torch.rsqrt(variance + epsilon) * mask
