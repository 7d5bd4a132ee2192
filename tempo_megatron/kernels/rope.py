"""Rotary position embedding (RoPE, arXiv 2104.09864) by a table of cosines and sines in the model's dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tempo_megatron.kernels import vllm_kernels
from tempo_megatron.kernels.compilation import widened


def rotary_table(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the cosines and then the sines of angles [positions, channels / 2] fp32, as [positions, channels]."""
    return torch.cat([angles.cos(), angles.sin()], -1).to(dtype)


def rotate(query: Tensor, key: Tensor, positions: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns query and key [tokens, heads, channels] rotated by the angles of their positions [tokens].

    Channel i of the first half of a head and channel i of the second half turn together. `table` is that of
    `rotary_table`. It has no gradient.
    """
    rotated_query, rotated_key = _Rotation.apply(query, key, positions, table)
    return rotated_query, rotated_key


class _Rotation(torch.autograd.Function):
    """A rotation is linear and orthogonal, so its gradient is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, positions: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(positions, table)
        return _rotated(query, key, positions, table)

    @staticmethod
    def backward(ctx: Any, for_query: Tensor, for_key: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        positions, table = ctx.saved_tensors
        cosines, sines = table.chunk(2, -1)
        return *_rotated(for_query, for_key, positions, torch.cat([cosines, -sines], -1)), None, None


def _rotated(query: Tensor, key: Tensor, positions: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    if not query.is_cuda:
        return _rotate_heads(query, positions, table), _rotate_heads(key, positions, table)
    # The kernel writes into its inputs.
    rotated = [heads.clone(memory_format=torch.contiguous_format) for heads in (query, key)]
    vllm_kernels.rotate_in_place(positions, rotated[0].flatten(1), rotated[1].flatten(1), query.shape[-1], table)
    return rotated[0], rotated[1]


def _rotate_heads(heads: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    cosines, sines = widened(table[positions])[:, None].chunk(2, -1)
    first, second = widened(heads).chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1).to(heads.dtype)
