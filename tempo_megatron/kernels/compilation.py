"""What the operations share: compilation for GPUs, and the dtype of sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def compiled_on_gpus[**Parameters, Result](function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Returns the function compiled for tensors of any size, or itself on a machine without GPUs."""
    return torch.compile(function, dynamic=True) if torch.cuda.is_available() else function


def widened(tensor: Tensor) -> Tensor:
    """Returns the tensor in the dtype of sums and intermediate results: fp32, or float64 for float64."""
    return tensor if tensor.dtype is torch.float64 else tensor.float()
