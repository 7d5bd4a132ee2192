"""Critic calibration: the squared error between values and verified correctness."""

from __future__ import annotations

import torch
from torch import Tensor


def calibration_mask(response_mask: Tensor) -> Tensor:
    """Positions whose value is trained: every response token and the last prompt token, V(x). [rows, sequence] bool."""
    next_is_response = torch.nn.functional.pad(response_mask[:, 1:], (0, 1))
    return response_mask | next_is_response


def squared_error(values: Tensor, correctness: Tensor, mask: Tensor) -> Tensor:
    """Sum over masked positions of (V - I)^2, to be divided by one global count of positions.

    values [rows, sequence]; correctness I [rows] in {0, 1}; mask [rows, sequence] bool.
    """
    return ((values - correctness[:, None]).square() * mask).sum()
