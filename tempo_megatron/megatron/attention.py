"""Self-attention with a window, softmax scale and rotary embedding per layer, and a core attention for CPUs.

Import this module after `cpu.install`, when a model is built.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.kernels.attention import packed_attention
from tempo_megatron.kernels.rope import Rotation
from tempo_megatron.megatron.packing import context_rank_positions


class AttentionLayer(TransformerLayer):
    """megatron-core's TransformerLayer without an MLP, which it never recomputes.

    `model.recompute: mlp` would recompute the identity in its place. Under FP8 Transformer Engine refuses that: it
    hands a module without layers of its own to torch's checkpoint, with arguments that torch's does not take.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.recompute_mlp = False


class LayerwiseSelfAttention(SelfAttention):
    """megatron-core's SelfAttention with a config and a rotary embedding of its own layer.

    The model has one rotary embedding, which holds the angles of every RoPE in `settings.ropes` side by side
    (`model.rotary_frequencies`). Each layer selects its part.
    """

    def __init__(self, config: Any, *args: Any, layer_number: int, settings: BackboneSettings, **options: Any) -> None:
        kind = settings.attention[(layer_number - 1) // 2]
        layer_config = copy.copy(config)
        layer_config.add_bias_linear = settings.attention_bias
        layer_config.window_size = (kind.window - 1, 0) if kind.window else None
        layer_config.softmax_scale = kind.rope.attention_scale * settings.kv_channels**-0.5
        if kind.window:  # Transformer Engine's peer-to-peer context parallelism supports no windows.
            options["cp_comm_type"] = "a2a"
        super().__init__(layer_config, *args, layer_number=layer_number, **options)
        self._ropes, self._rope = len(settings.ropes), settings.ropes.index(kind.rope)

    def forward(
        self, hidden_states: Tensor, attention_mask: Any, *args: Any, rotary_pos_emb: Tensor, **options: Any
    ) -> Any:
        """Runs SelfAttention with this layer's angles; rotary_pos_emb [sequence, 1, 1, 2 * ropes * channels / 2]."""
        if isinstance(self.core_attention, SharedAttention):  # It supports one RoPE, whose angles all layers share.
            self.core_attention.angles = rotary_pos_emb
            return super().forward(hidden_states, attention_mask, *args, rotary_pos_emb=None, **options)
        layer_angles = rotary_pos_emb.unflatten(-1, (2, self._ropes, -1))[..., self._rope, :].flatten(-2)
        if isinstance(self.core_attention, PackedAttention):
            self.core_attention.angles = layer_angles
            return super().forward(hidden_states, attention_mask, *args, rotary_pos_emb=None, **options)
        return super().forward(hidden_states, attention_mask, *args, rotary_pos_emb=layer_angles, **options)


class PackedAttention(torch.nn.Module):
    """Causal attention over packed sequences on CPUs, which no core attention of megatron-core supports.

    The constructor has megatron-core's signature. Under context parallelism keys and values are gathered over the
    ranks, and each rank computes the queries of its own pieces. Queries and keys of all sequences are rotated here at
    once, because megatron-core without fused kernels rotates one sequence after the other.
    """

    angles: Tensor
    """The angles of the layer in radians, [longest sequence, 1, 1, channels], set before each forward pass."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale or config.softmax_scale
        self.window = config.window_size
        self.context_group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: Any = None,
        attention_bias: None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Returns the attention output [tokens / CP, heads / TP * channels].

        query [tokens / CP, heads / TP, channels]; key and value [tokens / CP, groups / TP, channels].
        """
        assert packed_seq_params is not None  # The trainer packs every micro-batch.
        ranks, rank = self.context_group.size(), self.context_group.rank()
        boundaries = packed_seq_params.cu_seqlens_q.long()
        if ranks > 1:
            key, value = (gather_from_sequence_parallel_region(x, group=self.context_group) for x in (key, value))
            order = torch.cat(
                [context_rank_positions(boundaries.tolist(), other, ranks) for other in range(ranks)]
            ).argsort()
            key, value = key[order], value[order]
        lengths = boundaries.diff()
        local_lengths, positions = lengths // ranks, _positions(lengths, rank, ranks)
        query = _by_sequence(query, boundaries[:-1] // ranks, local_lengths)
        key, value = (_by_sequence(x, boundaries[:-1], lengths) for x in (key, value))
        query, key = self._rotate(query, positions), self._rotate(key, torch.arange(key.shape[2])[None])
        distance = positions[:, None, :, None] - torch.arange(key.shape[2])
        visible = distance >= 0 if not self.window else (distance >= 0) & (distance <= self.window[0])
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=self.scale, enable_gqa=True
        )
        is_token = torch.arange(query.shape[2]) < local_lengths[:, None]
        return context.transpose(1, 2)[is_token].flatten(1)

    def _rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotates [sequences, heads, tokens, channels] by the angles of `positions`, [sequences or 1, tokens]."""
        angles = self.angles[positions, 0].transpose(1, 2)
        first, second = heads.chunk(2, -1)
        return (heads * angles.cos() + torch.cat([-second, first], -1) * angles.sin()).to(heads.dtype)

    def sharded_state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Returns an empty dict, because core attention has no weights."""
        return {}


class SharedAttention(torch.nn.Module):
    """RoPE and causal attention over packed sequences by the generator's kernels.

    The constructor has megatron-core's signature. Windows and context parallelism are not supported.
    """

    angles: Tensor
    """As in `PackedAttention`."""

    def __init__(
        self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, **options: Any
    ) -> None:
        super().__init__()
        self.scale = options.get("softmax_scale") or config.softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: Any = None,
        attention_bias: None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Returns the attention output [tokens, heads * channels].

        query [tokens, heads, channels]; key and value [tokens, groups, channels].
        """
        assert packed_seq_params is not None  # The trainer packs every micro-batch.
        boundaries, longest = packed_seq_params.cu_seqlens_q, packed_seq_params.max_seqlen_q
        rotation = _rotation(self.angles, boundaries, query)
        return packed_attention(query, key, value, rotation, boundaries, longest, self.scale).flatten(1)

    def sharded_state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Returns an empty dict, because core attention has no weights."""
        return {}


_latest_rotation: tuple[Tensor, Tensor, Rotation] | None = None
"""The rotation of the latest micro-batch, and the angles and boundaries that it comes from."""


def _rotation(angles: Tensor, boundaries: Tensor, query: Tensor) -> Rotation:
    """Returns the rotation of packed queries and keys [tokens, heads, channels]; angles as in `PackedAttention`.

    All layers share that of a micro-batch. Its dozen small operations, repeated in each layer, would hold the GPU up.
    """
    global _latest_rotation
    if _latest_rotation is None or _latest_rotation[0] is not angles or _latest_rotation[1] is not boundaries:
        starts = boundaries[:-1].long().repeat_interleave(boundaries.long().diff(), output_size=len(query))
        positions = torch.arange(len(query), device=query.device) - starts
        half = query.shape[-1] // 2
        _latest_rotation = angles, boundaries, Rotation.by_angles(angles[:, 0, 0, :half], positions, query.dtype)
    return _latest_rotation[2]


def _by_sequence(packed: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Unpacks [tokens, heads, channels] to [sequences, heads, longest, channels].

    Positions after a sequence's end repeat its last token. The causal mask hides them from all earlier tokens.
    """
    within = torch.minimum(torch.arange(int(lengths.max())), lengths[:, None] - 1)
    index = starts[:, None] + within
    return packed.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _positions(lengths: Tensor, rank: int, ranks: int) -> Tensor:
    """Returns the position in its sequence of each token that a context-parallel rank holds (`packing.MicroBatch`).

    The shape is [sequences, most tokens of a sequence], or one row without context parallelism.
    """
    if ranks == 1:
        return torch.arange(int(lengths.max()))[None]
    piece = lengths[:, None] // (2 * ranks)
    index = torch.arange(int(lengths.max()) // ranks)
    return torch.where(index < piece, rank * piece + index, (2 * ranks - 1 - rank) * piece + index - piece)
