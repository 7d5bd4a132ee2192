"""What a conversion map is made of: entries that turn Hugging Face tensors into one Megatron tensor, and back.

Megatron names are canonical: those of a HybridModel with a Hugging Face layer i as layers 2i (attention) and 2i + 1
(MLP), numbered over all pipeline stages, norms not fused into projections. Nothing here changes a value: every
conversion is a permutation of rows, a concatenation or a padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tempo_megatron.conversion.rope import Rope

VOCABULARY_MULTIPLE = 128
OUTPUT_LAYER = "output_layer.weight"
OUTPUT_BIAS = "output_layer.bias"

Role = Literal["policy", "critic"]
QkNorm = Literal["none", "each_head", "all_heads"]


@dataclass(frozen=True)
class LayerAttention:
    """What one layer's attention has to itself: `window` tokens, the present one among them (None: all), and RoPE."""

    window: int | None
    rope: Rope


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """The shape of a decoder-only transformer with gated MLPs, as read from a Hugging Face config.

    `norm_after`: the norm follows attention and MLP, before the residual is added, rather than preceding them.
    `qk_norm`: queries and keys are normalized not at all, head by head, or over all heads of a token at once.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    rms_norm_eps: float
    tied: bool
    attention: tuple[LayerAttention, ...]
    qk_norm: QkNorm = "none"
    norm_after: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the Megatron embedding: a multiple that no layout changes."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotary embeddings of the layers, in the order in which layers first use them."""
        return tuple(dict.fromkeys(layer.rope for layer in self.attention))


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter and the Hugging Face tensors that it is made of; this class maps it one to one.

    `shape` is that of the whole Megatron tensor. `shard_axis` is the axis that tensor parallelism splits, None where
    the parameter is replicated. `tied_output` marks an embedding that serves as output layer too.
    """

    megatron_name: str
    hf_names: tuple[str, ...]
    shape: tuple[int, ...]
    shard_axis: int | None = None
    tied_output: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def hf_shapes(self) -> list[tuple[int, ...]]:
        """The shapes that the Hugging Face tensors must have, in the order of `hf_names`."""
        return [tuple(tensor.shape) for tensor in self.to_hf(torch.empty(self.shape, device="meta"))]

    def to_megatron(self, *tensors: Tensor) -> Tensor:
        """The whole Megatron tensor from the whole Hugging Face ones, in the order of `hf_names`."""
        (tensor,) = tensors
        return tensor

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The inverse of `to_megatron`, bit for bit."""
        return (tensor,)

    def shard(self, tensor: Tensor, rank: int, ranks: int) -> Tensor:
        """The part of a whole Megatron tensor that one tensor-parallel rank holds."""
        if self.shard_axis is None:
            return tensor
        return tensor.chunk(ranks, self.shard_axis)[rank]

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        """The whole Megatron tensor from the shards of all tensor-parallel ranks: a view where one can be."""
        if self.shard_axis is None or len(shards) == 1:
            return shards[0]
        return torch.cat(list(shards), self.shard_axis)


@dataclass(frozen=True)
class Vocabulary(Entry):
    """[vocabulary, hidden], padded with zero rows on the Megatron side."""

    vocab_size: int = 0

    def to_megatron(self, *tensors: Tensor) -> Tensor:
        (tensor,) = tensors
        missing = self.shape[0] - self.vocab_size
        return torch.nn.functional.pad(tensor, (0, 0, 0, missing)) if missing else tensor

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor[: self.vocab_size],)

    def rows_to_hf(self, rows: Tensor, first: int) -> Tensor:
        """Those of some rows of the Megatron tensor, from its row `first` on, that the Hugging Face one has too."""
        return rows[: max(0, self.vocab_size - first)]


@dataclass(frozen=True)
class Attention(Entry):
    """Query, key and value projections as one, rows grouped by query group: its queries, its key, its value."""

    num_query_groups: int = 0
    kv_channels: int = 0

    def to_megatron(self, *tensors: Tensor) -> Tensor:
        by_group = [tensor.unflatten(0, (self.num_query_groups, -1)) for tensor in tensors]
        return torch.cat(by_group, 1).flatten(0, 1)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        by_group = tensor.unflatten(0, (self.num_query_groups, -1))
        queries = by_group.shape[1] - 2 * self.kv_channels
        parts = by_group.split([queries, self.kv_channels, self.kv_channels], 1)
        return tuple(part.flatten(0, 1) for part in parts)


@dataclass(frozen=True)
class Gated(Entry):
    """Gate and up projections as one: gate rows, then up rows, on every tensor-parallel rank."""

    def to_megatron(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.chunk(2))

    def shard(self, tensor: Tensor, rank: int, ranks: int) -> Tensor:
        return torch.cat([half.chunk(ranks)[rank] for half in tensor.chunk(2)])

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        if len(shards) == 1:
            return shards[0]
        halves = [shard.chunk(2) for shard in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
