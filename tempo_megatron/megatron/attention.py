"""Self-attention whose window, softmax scale and rotary embedding are each layer's own.

Imported when a model is built, after `cpu.install`.
"""

from __future__ import annotations

import copy
from typing import Any

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from checkpoints_convert.mapping import BackboneSettings


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
        super().__init__(own, *args, layer_number=layer_number, **options)
        self._ropes, self._rope = len(settings.ropes), settings.ropes.index(kind.rope)

    def forward(
        self, hidden_states: Tensor, attention_mask: Any, *args: Any, rotary_pos_emb: Tensor, **options: Any
    ) -> Any:
        """As SelfAttention; rotary_pos_emb [sequence, 1, 1, 2 * ropes * channels / 2]."""
        own = rotary_pos_emb.unflatten(-1, (2, self._ropes, -1))[..., self._rope, :].flatten(-2)
        return super().forward(hidden_states, attention_mask, *args, rotary_pos_emb=own, **options)
