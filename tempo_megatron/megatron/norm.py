"""Normalization layers that megatron-core lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels.norm import rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with megatron-core's constructor and a weight marked for sequence-parallel gradients.

    megatron-core's own wrapper of torch norms refuses sequence parallelism.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **norm_kind: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class SharedRMSNorm(RMSNorm):
    """RMSNorm by the generator's kernel."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the normalized inputs [..., hidden_size] in their dtype."""
        assert self.eps is not None
        return rms_norm(inputs, self.weight, self.eps)


class HeadsNorm(torch.nn.Module):
    """RMS normalization over all heads of a token together, with heads split over TP (OLMo 2, arXiv 2501.00656).

    The mean square is summed over TP ranks. So is its gradient, since the output of every rank depends on all heads.
    The weight, [heads / TP * channels], is split like the heads.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float, heads: int) -> None:
        super().__init__()
        from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

        self.width, self.eps = heads * hidden_size, eps
        local_width = self.width // config.tensor_model_parallel_size
        self.weight = torch.nn.Parameter(torch.ones(local_width, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, heads: Tensor) -> Tensor:
        """Normalizes [sequence, micro_batch, heads / TP, channels] in fp32; returns the dtype of the input."""
        from megatron.core.tensor_parallel import (
            copy_to_tensor_model_parallel_region,
            reduce_from_tensor_model_parallel_region,
        )

        heads_fp32 = heads.float()
        local_squares = heads_fp32.square().sum((-2, -1), keepdim=True)
        squares = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(local_squares))
        scaled = heads_fp32 * torch.rsqrt(squares / self.width + self.eps)
        return (scaled * self.weight.float().view(heads.shape[-2:])).to(heads.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Returns the weight for checkpoints, as one tensor over all TP ranks."""
        from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

        state = self.state_dict(keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {"weight": 0}, sharded_offsets)
