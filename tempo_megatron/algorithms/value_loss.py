"""The critic's loss: the squared error between values and targets."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def calibration_mask(response_mask: Bool[Tensor, "rows sequence"]) -> Bool[Tensor, "rows sequence"]:
    """Returns True where the value is trained: at every response token, and at the last prompt token for V(x)."""
    next_is_response = torch.nn.functional.pad(response_mask[:, 1:], (0, 1))
    return response_mask | next_is_response


def return_targets(
    returns: Float[Tensor, "rows sequence"],
    rewards: Float[Tensor, " rows"],
    response_mask: Bool[Tensor, "rows sequence"],
) -> Float[Tensor, "rows sequence"]:
    """Returns the value targets at the positions of `calibration_mask`, 0 elsewhere.

    A return belongs to the state before its token, so it moves one position earlier. The target after the last token
    is the reward itself, because TEMPO reads that value as a reward.
    """
    next_is_response = torch.nn.functional.pad(response_mask[:, 1:], (0, 1))
    next_returns = torch.nn.functional.pad(returns[:, 1:], (0, 1))
    return torch.where(next_is_response, next_returns, rewards[:, None]) * calibration_mask(response_mask)


def squared_error(
    values: Float[Tensor, "rows sequence"],
    targets: Float[Tensor, "rows sequence"],
    mask: Bool[Tensor, "rows sequence"],
    old_values: Float[Tensor, "rows sequence"] | None = None,
    clip: float = 0.0,
) -> Float[Tensor, "rows sequence"]:
    """Returns (V - target)^2 inside the mask, 0 elsewhere. The caller divides its sum by one global count.

    With `clip` c > 0 the value gains nothing from moving more than c away from `old_values`. The error is then
    max((V - target)^2, (V_old + clamp(V - V_old, -c, c) - target)^2), as in PPO's code.
    """
    error = (values - targets).square()
    if clip:
        if old_values is None:
            raise ValueError("value clipping needs the values from before the update")
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - targets).square())
    return error * mask
