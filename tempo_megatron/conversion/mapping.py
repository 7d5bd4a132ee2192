"""The kinds of parameter mapping. A mapping turns Hugging Face tensors into one Megatron tensor, and back.

Megatron names are canonical: they do not depend on the parallel layout. A model's Hugging Face layer i becomes the
HybridModel layers 2i (attention) and 2i + 1 (MLP or experts), numbered over all pipeline stages; norms are not fused
into projections. Every expert has parameters of its own, numbered over all experts. No mapping changes a value: each
permutes rows, concatenates or pads.
"""

from __future__ import annotations

import itertools
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
    """The attention settings that may differ from layer to layer."""

    window: int | None
    """The number of tokens that a token sees, itself included; None for all."""
    rope: Rope


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """The experts of a mixture-of-experts model. All layers with experts have the same number of them."""

    num_experts: int
    experts_per_token: int
    ffn_hidden_size: int
    """The width of one expert."""
    weights_sum_to_one: bool
    """Whether a softmax over a token's chosen experts weights them. Otherwise it runs over all experts."""
    sparse_layers: tuple[bool, ...]
    """For each layer, whether it has experts. The other layers have one MLP."""


@dataclass(frozen=True)
class ExpertSlot:
    """The place of one expert's tensor in a checkpoint, where all experts of a layer are one tensor [experts, ...]."""

    stored_name: str
    expert: int
    num_experts: int


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """The sizes and features of a decoder-only transformer with gated MLPs, read from a Hugging Face config."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    rms_norm_eps: float
    tied: bool
    """Whether the embedding serves as output layer too."""
    attention: tuple[LayerAttention, ...]
    """One item for each layer."""
    qk_norm: QkNorm = "none"
    """Queries and keys are not normalized, or head by head, or over all heads of a token at once."""
    norm_after: bool = False
    """Whether norms follow attention and MLP, before the residual is added, instead of preceding them."""
    attention_bias: bool = False
    mlp_bias: bool = False
    experts: ExpertSettings | None = None
    """None for a dense model."""

    @property
    def sparse_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it has experts instead of one MLP."""
        return self.experts.sparse_layers if self.experts else (False,) * self.num_layers

    @property
    def attention_weights(self) -> int:
        """The number of weights of attention that each token is multiplied with, in all layers."""
        queries, keys = self.num_attention_heads * self.kv_channels, self.num_query_groups * self.kv_channels
        return self.num_layers * self.hidden_size * (2 * queries + 2 * keys)

    @property
    def mlp_weights(self) -> int:
        """The number of weights of MLPs, routers and experts that each token is multiplied with, in all layers."""
        sparse = sum(self.sparse_layers)
        channels = 3 * self.ffn_hidden_size * (self.num_layers - sparse)
        if self.experts:
            width = self.experts.experts_per_token * self.experts.ffn_hidden_size
            channels += sparse * (3 * width + self.experts.num_experts)
        return self.hidden_size * channels

    def output_weights(self, role: Role) -> int:
        """Return the number of weights of the output layer: over the vocabulary, or over the critic's one value."""
        return self.hidden_size * (self.vocab_size if role == "policy" else 1)

    def chunk_layers(self, chunks: int, role: Role) -> list[range]:
        """Return the layers of each of `chunks` parts, which a micro-batch passes one after the other.

        The last part also has the output layer, which costs as much as some layers. It gets as many fewer layers as
        make the slowest part fastest, but at least one. The others differ by one at most, and the first have more. The
        embedding is a look-up and costs no time.
        """
        if chunks == 1:
            return [range(self.num_layers)]
        others = chunks - 1
        output_cost = self.output_weights(role) * self.num_layers / (self.attention_weights + self.mlp_weights)

        def slowest(last: int) -> float:
            return max(math.ceil((self.num_layers - last) / others), last + output_cost)

        last = min(range(max(1, self.num_layers // chunks), 0, -1), key=slowest)
        fewer, longer = divmod(self.num_layers - last, others)
        lengths = [fewer + (chunk < longer) for chunk in range(others)]
        starts = itertools.accumulate([*lengths, last], initial=0)
        return [range(start, end) for start, end in itertools.pairwise(starts)]

    def stage_chunks(self, stages: int, chunks_per_stage: int, role: Role) -> list[list[range]]:
        """Return the layers of each chunk of each pipeline stage: chunk c of all belongs to stage c modulo `stages`."""
        layers = self.chunk_layers(stages * chunks_per_stage, role)
        return [layers[stage::stages] for stage in range(stages)]

    @property
    def padded_vocab_size(self) -> int:
        """The number of rows of the Megatron embedding: a multiple of 128 under every parallel layout."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct rotary embeddings, in the order in which layers first use them."""
        return tuple(dict.fromkeys(layer.rope for layer in self.attention))


@dataclass(frozen=True)
class ParameterMapping:
    """Maps one Megatron parameter to its Hugging Face tensors. This class maps one tensor to one, unchanged."""

    megatron_name: str
    hf_names: tuple[str, ...]
    shape: tuple[int, ...]
    """The shape of the full Megatron tensor, before tensor parallelism splits it."""
    shard_axis: int | None = None
    """The axis that tensor parallelism splits; None where every rank has the full parameter."""
    tied_output: bool = False
    """Whether this is an embedding that serves as output layer too."""
    slot: ExpertSlot | None = None
    """The place in a checkpoint; None for a parameter that is a tensor of its own there."""

    @property
    def stored_name(self) -> str:
        """The name of the checkpoint's tensor that holds this parameter."""
        return self.slot.stored_name if self.slot else self.megatron_name

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the checkpoint's tensor that holds this parameter."""
        return (self.slot.num_experts, *self.shape) if self.slot else self.shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def hf_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes that the Hugging Face tensors must have, in the order of `hf_names`."""
        return [tuple(tensor.shape) for tensor in self.to_hf(torch.empty(self.shape, device="meta"))]

    def to_megatron(self, *tensors: Tensor) -> Tensor:
        """Return the full Megatron tensor of the full Hugging Face tensors, which come in the order of `hf_names`."""
        (tensor,) = tensors
        return tensor

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the Hugging Face tensors of a full Megatron tensor: the exact inverse of `to_megatron`."""
        return (tensor,)

    def shard(self, tensor: Tensor, rank: int, ranks: int) -> Tensor:
        """Return the part of a full Megatron tensor that one tensor-parallel rank holds."""
        if self.shard_axis is None:
            return tensor
        return tensor.chunk(ranks, self.shard_axis)[rank]

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        """Return the full Megatron tensor of all tensor-parallel ranks' shards; a view where that is possible."""
        if self.shard_axis is None or len(shards) == 1:
            return shards[0]
        return torch.cat(list(shards), self.shard_axis)


@dataclass(frozen=True)
class VocabularyMapping(ParameterMapping):
    """Maps an embedding or output layer, [vocabulary, hidden]. Megatron's tensor has zero rows as padding."""

    vocab_size: int = 0

    def to_megatron(self, *tensors: Tensor) -> Tensor:
        (tensor,) = tensors
        padding = self.shape[0] - self.vocab_size
        return torch.nn.functional.pad(tensor, (0, 0, 0, padding)) if padding else tensor

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor[: self.vocab_size],)

    def rows_to_hf(self, rows: Tensor, first: int) -> Tensor:
        """Return the rows without the vocabulary's padding. `first` is the Megatron tensor's index of `rows[0]`."""
        return rows[: max(0, self.vocab_size - first)]


@dataclass(frozen=True)
class QkvMapping(ParameterMapping):
    """Maps query, key and value projections to one tensor. Its rows are grouped by query group: queries, key, value."""

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
class GatedMlpMapping(ParameterMapping):
    """Maps gate and up projections to one tensor: gate rows, then up rows, on every tensor-parallel rank."""

    def to_megatron(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors)

    def to_hf(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.chunk(2))

    def shard(self, tensor: Tensor, rank: int, ranks: int) -> Tensor:
        if self.shard_axis is None:
            return tensor
        return torch.cat([half.chunk(ranks)[rank] for half in tensor.chunk(2)])

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        if self.shard_axis is None or len(shards) == 1:
            return shards[0]
        halves = [shard.chunk(2) for shard in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
