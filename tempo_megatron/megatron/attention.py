"""Self-attention whose window, softmax scale and rotary embedding are each layer's own, and its core without a GPU.

Imported when a model is built, after `cpu.install`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.megatron.packing import held_by


class LayerwiseSelfAttention(SelfAttention):
    """megatron-core's SelfAttention under a config of its layer's own, with its own part of the rotary embedding.

    The model's one rotary embedding holds the angles of every RoPE in `settings.ropes` side by side
    (`model.rotary_frequencies`).
    """

    def __init__(self, config: Any, *args: Any, layer_number: int, settings: BackboneSettings, **options: Any) -> None:
        kind = settings.attention[(layer_number - 1) // 2]
        own = copy.copy(config)
        own.add_bias_linear = settings.attention_bias
        own.window_size = (kind.window - 1, 0) if kind.window else None
        own.softmax_scale = kind.rope.attention_scale * settings.kv_channels**-0.5
        if kind.window:  # Transformer Engine passes no windows from rank to rank
            options["cp_comm_type"] = "a2a"
        super().__init__(own, *args, layer_number=layer_number, **options)
        self._ropes, self._rope = len(settings.ropes), settings.ropes.index(kind.rope)

    def forward(
        self, hidden_states: Tensor, attention_mask: Any, *args: Any, rotary_pos_emb: Tensor, **options: Any
    ) -> Any:
        """As SelfAttention; rotary_pos_emb [sequence, 1, 1, 2 * ropes * channels / 2]."""
        own = rotary_pos_emb.unflatten(-1, (2, self._ropes, -1))[..., self._rope, :].flatten(-2)
        if isinstance(self.core_attention, PackedAttention):
            self.core_attention.angles, own = own, None
        return super().forward(hidden_states, attention_mask, *args, rotary_pos_emb=own, **options)


class PackedAttention(torch.nn.Module):
    """Causal attention over packed sequences without a GPU, under the constructor of megatron-core's core attentions,
    of which none does that.

    Under context parallelism keys and values are gathered over its ranks; a rank attends from its own pieces. Queries
    and keys are rotated here, all sequences at once: megatron-core without fused kernels rotates one after the other.
    """

    angles: Tensor
    """[longest sequence, 1, 1, channels] radians, those of a layer, set before each forward pass"""

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
        """query [tokens / CP, heads / TP, channels], key and value [tokens / CP, groups / TP, channels] ->
        [tokens / CP, heads / TP * channels]."""
        assert packed_seq_params is not None  # the trainer packs every micro-batch
        ranks, rank = self.context_group.size(), self.context_group.rank()
        boundaries = packed_seq_params.cu_seqlens_q.long()
        if ranks > 1:
            key, value = (gather_from_sequence_parallel_region(x, group=self.context_group) for x in (key, value))
            order = torch.cat([held_by(boundaries.tolist(), one, ranks) for one in range(ranks)]).argsort()
            key, value = key[order], value[order]
        lengths = boundaries.diff()
        mine, positions = lengths // ranks, _positions(lengths, rank, ranks)
        query = _by_sequence(query, boundaries[:-1] // ranks, mine)
        key, value = (_by_sequence(x, boundaries[:-1], lengths) for x in (key, value))
        query, key = self._rotated(query, positions), self._rotated(key, torch.arange(key.shape[2])[None])
        distance = positions[:, None, :, None] - torch.arange(key.shape[2])
        seen = distance >= 0 if not self.window else (distance >= 0) & (distance <= self.window[0])
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=self.scale, enable_gqa=True
        )
        there = torch.arange(query.shape[2]) < mine[:, None]
        return context.transpose(1, 2)[there].flatten(1)

    def _rotated(self, heads: Tensor, positions: Tensor) -> Tensor:
        """[sequences, heads, tokens, channels] turned by the angles of their positions, [sequences or 1, tokens]."""
        angles = self.angles[positions, 0].transpose(1, 2)
        first, second = heads.chunk(2, -1)
        return (heads * angles.cos() + torch.cat([-second, first], -1) * angles.sin()).to(heads.dtype)

    def sharded_state_dict(self, *where: Any, **options: Any) -> dict[str, Any]:
        """Nothing: attention has no weights of its own."""
        return {}


def _by_sequence(packed: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """[tokens, heads, channels] -> [sequences, heads, longest, channels]. What follows a sequence's end repeats its
    last token, which no earlier one sees."""
    within = torch.minimum(torch.arange(int(lengths.max())), lengths[:, None] - 1)
    index = starts[:, None] + within
    return packed.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _positions(lengths: Tensor, rank: int, ranks: int) -> Tensor:
    """Where in its sequence each token stands that a context-parallel rank holds (`packing.MicroBatch`): [sequences,
    most tokens of one], or one row where all of them are alike."""
    if ranks == 1:
        return torch.arange(int(lengths.max()))[None]
    piece = lengths[:, None] // (2 * ranks)
    at = torch.arange(int(lengths.max()) // ranks)
    return torch.where(at < piece, rank * piece + at, (2 * ranks - 1 - rank) * piece + at - piece)
