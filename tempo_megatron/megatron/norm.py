"""RMS normalisation for the layers that run without Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm under megatron-core's constructor, marking its weight for sequence-parallel gradients.

    megatron-core's own wrapper of torch norms refuses sequence parallelism.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **norm_kind: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
