"""Rotary position embedding (RoPE, arXiv 2104.09864) by a table of cosines and sines in the model's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tempo_megatron.kernels import vllm_kernels
from tempo_megatron.kernels.compilation import widened


def rotary_table(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the cosines and then the sines of angles [positions, channels / 2] fp32, as [positions, channels]."""
    return torch.cat([angles.cos(), angles.sin()], -1).to(dtype)


@dataclass(frozen=True)
class Rotation:
    """The rotation of queries and keys by the angles of their positions.

    Channel i of the first half of a head and channel i of the second half turn together. The rotation is linear and
    orthogonal, so its gradient is the rotation by the opposite angles.
    """

    positions: Tensor
    """The position of each token in its sequence, [tokens] int64."""
    table: Tensor
    """That of `rotary_table`, [positions, channels]."""
    opposite: Tensor
    """The table of the opposite angles."""

    @classmethod
    def by_angles(cls, angles: Tensor, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Returns the rotation by angles [positions, channels / 2] fp32 of tokens with `positions` [tokens]."""
        table = rotary_table(angles, dtype)
        cosines, sines = table.chunk(2, -1)
        return cls(positions, table, torch.cat([cosines, -sines], -1))

    def apply(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Returns copies of query and key [tokens, heads, channels], rotated."""
        query, key = (heads.clone(memory_format=torch.contiguous_format) for heads in (query, key))
        self._rotate_in_place(query, key, self.table)
        return query, key

    def revert_in_place(self, query: Tensor, key: Tensor) -> None:
        """Rotates contiguous query and key, or their gradients, [tokens, heads, channels], back."""
        self._rotate_in_place(query, key, self.opposite)

    def _rotate_in_place(self, query: Tensor, key: Tensor, table: Tensor) -> None:
        if query.is_cuda:
            # Views, never copies: the kernel writes into them.
            query_rows, key_rows = query.view(len(query), -1), key.view(len(key), -1)
            vllm_kernels.rotate_in_place(self.positions, query_rows, key_rows, query.shape[-1], table)
            return
        for heads in (query, key):
            cosines, sines = widened(table[self.positions])[:, None].chunk(2, -1)
            first, second = widened(heads).chunk(2, -1)
            heads.copy_(torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1))
