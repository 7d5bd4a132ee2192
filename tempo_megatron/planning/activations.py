"""Bytes that the activations of one micro-batch take on one rank, as megatron-core's HybridModel of Transformer Engine
layers keeps them.

Two moments of a step are the highest: `at_loss`, when the logits have become their gradient and the output layer makes
its weight's, or the last chunk of them is read, and `at_backward`, in the backward pass of the last layer. Which one is
higher depends on the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config import Config, Fp8, Precision, Recompute
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.planning.layout import Layout

_FP32 = 4

LOGITS_CHUNK = 2**28
"""bytes of logits in fp32 that are there at a time (`megatron/log_probs.py`)"""


@dataclass(frozen=True)
class Sublayer:
    """Bytes of attention or an MLP with its norm and residual.

    `entrance`: its input. `kept`: all that its forward pass leaves for the backward pass, the input included.
    `backward`: the most that the backward pass takes beside `kept`. `forward`: the most that a forward pass takes that
    keeps nothing.
    """

    entrance: int
    kept: int
    backward: int
    forward: int


@dataclass(frozen=True)
class Activations:
    """Of one micro-batch of `tokens` over all context-parallel ranks, on a rank of a model under `config`."""

    settings: BackboneSettings
    config: Config
    layout: Layout
    tokens: int

    @property
    def whole(self) -> int:
        """Tokens where a tensor-parallel region holds all of them."""
        return self.tokens // self.layout.context

    @property
    def split(self) -> int:
        """Tokens where sequence parallelism has split them."""
        return self.whole // (self.layout.tensor if self.layout.sequence_parallel else 1)

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return 2 if self.config.model.precision is Precision.bf16 else _FP32

    @property
    def hidden(self) -> int:
        """Bytes of the residual stream."""
        return self.split * self.settings.hidden_size * self.width

    @property
    def _gathered(self) -> int:
        """Bytes of a whole copy of the residual stream that sequence parallelism makes for a product."""
        return self.whole * self.settings.hidden_size * self.width if self.layout.sequence_parallel else 0

    @property
    def _eight_bits(self) -> bool:
        return self.config.model.fp8 is not Fp8.none

    def _operand(self, elements: int) -> int:
        """Bytes that a linear layer keeps of an input that nothing else keeps."""
        return elements * (1 if self._eight_bits else self.width)

    @property
    def _entrance(self) -> tuple[int, int]:
        """Of a sub-layer: its input, and what is kept of it and of the norm around it."""
        elements = self.split * self.settings.hidden_size
        if self.settings.norm_after:  # the projection keeps its input, the norm that follows keeps its own
            return self.hidden, self._operand(elements) + self.hidden
        return self.hidden, self.hidden + self._operand(elements)

    @property
    def attention(self) -> Sublayer:
        shape, tensor = self.settings, self.layout.tensor
        queries = self.whole * shape.num_attention_heads * shape.kv_channels // tensor
        keys = self.whole * shape.num_query_groups * shape.kv_channels // tensor
        entrance, kept = self._entrance
        normed = {"none": 0, "each_head": self.width, "all_heads": 2 * _FP32}[shape.qk_norm] * (queries + keys)
        kept += normed + self.width * (2 * queries + 2 * keys)  # rotated queries and keys, values, the output
        kept += _FP32 * self.whole * shape.num_attention_heads // tensor  # the softmax's normalizers
        if self.config.model.fp8 is Fp8.delayed:
            kept += queries  # the output once more, in 8 bits
        if len(shape.ropes) > 1:
            kept += _FP32 * self.whole * shape.kv_channels  # the layer's own angles
        gradients = self.width * (2 * queries + 2 * keys) + _FP32 * queries
        exchanged = 4 * keys * self.width if self.layout.context > 1 else 0
        backward = self.hidden + self._gathered + max(gradients + exchanged, 3 * _FP32 * queries * bool(normed))
        forward = 2 * self.hidden + self._gathered + self.width * (2 * queries + 2 * keys) + normed
        return Sublayer(entrance, kept, backward, forward)

    @property
    def mlp(self) -> Sublayer:
        channels = self.whole * self.settings.ffn_hidden_size // self.layout.tensor
        entrance, kept = self._entrance
        wide, activated = 2 * channels * self.width, self._operand(channels)
        kept += wide + activated
        narrow = channels * self.width
        whole = self.whole * self.settings.hidden_size
        # In 8 bits a gradient is there twice more, once for each product, and operands go when their layer is done.
        into_second = self._gathered + (2 * whole if self._eight_bits else 0) + narrow
        into_activation = narrow + wide - (0 if self._eight_bits else activated)
        into_first = (4 * channels if self._eight_bits else 0) + self._gathered + whole * self.width - activated
        backward = self.hidden + max(into_second, into_activation, into_first)
        forward = 2 * self.hidden + self._gathered + wide + narrow + (channels if self._eight_bits else 0)
        return Sublayer(entrance, kept, backward, forward)

    def kept(self, layers: int) -> int:
        """What a forward pass through so many transformer layers keeps."""
        return layers * sum(part.kept - self._given_up(part, again) for part, again in self._parts)

    def at_backward(self) -> int:
        """The most that the backward pass takes beside what is kept, recomputation included."""
        gone = most = 0
        for part, again in reversed(self._parts):
            recomputed = self._given_up(part, again) + self.hidden if again else 0
            most = max(most, recomputed + part.backward - gone)
            gone = part.kept - self._given_up(part, again)
        return most

    def at_loss(self, role: Role) -> dict[str, int]:
        """What the last stage holds beside what is kept when its output layer makes its gradients."""
        shape, whole = self.settings, self.whole * self.settings.hidden_size
        final_norm = 2 * self.hidden
        if role == "critic":  # its head works in fp32
            gathered = whole * self.width if self.layout.sequence_parallel else 0
            return {"output layer": final_norm + gathered + whole * (2 * _FP32 + self.width)}
        weight = shape.padded_vocab_size // self.layout.tensor * shape.hidden_size * self.width
        made = max(weight + whole * self.width, self._chunk)
        return {"logits": self._logits * self.width, "output layer": final_norm + self._gathered + made}

    @property
    def _logits(self) -> int:
        return self.whole * self.settings.padded_vocab_size // self.layout.tensor

    @property
    def _chunk(self) -> int:
        return min(LOGITS_CHUNK, self._logits * _FP32)

    def reading(self, role: Role) -> int:
        """The most that a forward pass takes that keeps nothing."""
        read = self.whole * self.settings.hidden_size
        last = self._gathered + self._chunk if role == "policy" else read * _FP32
        return max(self.attention.forward, self.mlp.forward, 2 * self.hidden + last)

    @property
    def _parts(self) -> tuple[tuple[Sublayer, bool], ...]:
        """The sub-layers in their order, and whether the backward pass computes them again."""
        recompute = self.config.model.recompute
        return (self.attention, recompute is Recompute.full), (self.mlp, recompute is not Recompute.none)

    def _given_up(self, part: Sublayer, again: bool) -> int:
        """What is not kept of a part that is computed again."""
        return part.kept - part.entrance if again else 0
