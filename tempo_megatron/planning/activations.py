"""Bytes of the activations of one micro-batch on one rank.

The figures are those of megatron-core's HybridModel with Transformer Engine layers.

A step has two candidates for its memory peak. Which one is higher depends on the vocabulary:

- `at_loss`: the logits have become their gradient and the output layer computes its weight gradient, or the last chunk
  of logits is read
- `at_backward`: the backward pass of the last layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tempo_megatron.config import Config, Fp8, Precision, Recompute
from tempo_megatron.conversion.mapping import BackboneSettings, Role
from tempo_megatron.planning.layout import Layout

_FP32 = 4

_ROUTING_BYTES = 13
"""The bytes of a router for each token and expert: a probability, the route, and Transformer Engine's map of rows."""

LOGITS_CHUNK = 2**28
"""The bytes of fp32 logits that exist at a time (`megatron/log_probs.py`)."""


@dataclass(frozen=True)
class SublayerMemory:
    """Bytes of attention or an MLP with its norm and residual."""

    input: int
    kept: int
    """All that the forward pass keeps for the backward pass, including the input."""
    backward: int
    """The peak of the backward pass beside `kept`."""
    forward: int
    """The peak of a forward pass that keeps nothing."""


@dataclass(frozen=True)
class Activations:
    """Activations on one rank, of a micro-batch with `tokens` tokens over all context-parallel ranks."""

    settings: BackboneSettings
    config: Config
    layout: Layout
    tokens: int

    @property
    def region_tokens(self) -> int:
        """The tokens on a rank inside a tensor-parallel region, which holds all tokens."""
        return self.tokens // self.layout.context

    @property
    def split_tokens(self) -> int:
        """The tokens on a rank where sequence parallelism splits them."""
        return self.region_tokens // (self.layout.tensor if self.layout.sequence_parallel else 1)

    @property
    def width(self) -> int:
        """The bytes of one activation."""
        return 2 if self.config.model.precision is Precision.bf16 else _FP32

    @property
    def hidden(self) -> int:
        """The bytes of the residual stream."""
        return self.split_tokens * self.settings.hidden_size * self.width

    @property
    def _gathered(self) -> int:
        """The bytes of the gathered residual stream that sequence parallelism makes for a matrix product."""
        return self.region_tokens * self.settings.hidden_size * self.width if self.layout.sequence_parallel else 0

    @property
    def _is_fp8(self) -> bool:
        return self.config.model.fp8 is not Fp8.none

    def _operand(self, elements: int) -> int:
        """Return the bytes that a linear layer keeps of an input that nothing else keeps."""
        return elements * (1 if self._is_fp8 else self.width)

    @property
    def _input_and_norm(self) -> tuple[int, int]:
        """The bytes of a sub-layer's input, and what is kept of the input and of the norm."""
        elements = self.split_tokens * self.settings.hidden_size
        if self.settings.norm_after:  # the projection keeps its input, the norm that follows keeps its own
            return self.hidden, self._operand(elements) + self.hidden
        return self.hidden, self.hidden + self._operand(elements)

    @property
    def attention(self) -> SublayerMemory:
        shape, tensor = self.settings, self.layout.tensor
        queries = self.region_tokens * shape.num_attention_heads * shape.kv_channels // tensor
        keys = self.region_tokens * shape.num_query_groups * shape.kv_channels // tensor
        input_bytes, kept = self._input_and_norm
        qk_norm = {"none": 0, "each_head": self.width, "all_heads": 2 * _FP32}[shape.qk_norm] * (queries + keys)
        kept += qk_norm + self.width * (2 * queries + 2 * keys)  # rotated queries and keys, values, the output
        kept += _FP32 * self.region_tokens * shape.num_attention_heads // tensor  # the softmax's normalizers
        if self.config.model.fp8 is Fp8.delayed:
            kept += queries  # a second copy of the output, in 8 bits
        if len(shape.ropes) > 1:
            kept += _FP32 * self.region_tokens * shape.kv_channels  # the layer's own RoPE angles
        gradients = self.width * (2 * queries + 2 * keys) + _FP32 * queries
        exchanged = 4 * keys * self.width if self.layout.context > 1 else 0
        backward = self.hidden + self._gathered + max(gradients + exchanged, 3 * _FP32 * queries * bool(qk_norm))
        forward = 2 * self.hidden + self._gathered + self.width * (2 * queries + 2 * keys) + qk_norm
        return SublayerMemory(input_bytes, kept, backward, forward)

    @property
    def mlp(self) -> SublayerMemory:
        channels = self.region_tokens * self.settings.ffn_hidden_size // self.layout.tensor
        input_bytes, kept = self._input_and_norm
        gate_and_up, activated = 2 * channels * self.width, self._operand(channels)
        kept += gate_and_up + activated
        product = channels * self.width
        hidden_elements = self.region_tokens * self.settings.hidden_size
        # With FP8 each gradient has two more copies, one for each product, and operands are freed after their layer.
        second_layer = self._gathered + (2 * hidden_elements if self._is_fp8 else 0) + product
        activation = product + gate_and_up - (0 if self._is_fp8 else activated)
        first_layer = (4 * channels if self._is_fp8 else 0) + self._gathered + hidden_elements * self.width - activated
        backward = self.hidden + max(second_layer, activation, first_layer)
        forward = 2 * self.hidden + self._gathered + gate_and_up + product + (channels if self._is_fp8 else 0)
        return SublayerMemory(input_bytes, kept, backward, forward)

    @property
    def experts(self) -> SublayerMemory:
        """Router and experts, with equally busy experts.

        A rank has T tokens, with sequence parallelism its part of them. Each token has k experts. The rank sends k T
        tokens to its group and gets as many. Norm and router keep T (2 hidden + 13 experts bytes). The products keep
        k T (hidden + 3 channels), with FP8 their operands in 8 bits.

        Copies of k T hidden live until the layer ends. These are the sorted tokens, and what the experts return, before
        and after it is sorted. Under expert parallelism the exchanged tokens are another copy. With FP8 one more has
        the tokens of each expert filled up to whole tiles, and is quantized twice, for the products of both passes.
        """
        experts = self.settings.experts
        assert experts is not None
        routed, channels = self.split_tokens * experts.experts_per_token, experts.ffn_hidden_size
        elements = routed * self.settings.hidden_size
        copy = elements * self.width
        routing = self.split_tokens * experts.num_experts * _ROUTING_BYTES
        gate_and_up, activated = 2 * routed * channels * self.width, self._operand(routed * channels)
        products = gate_and_up + activated + routed * _FP32  # and the weight of each routed token
        copies = 3 + (self.layout.expert > 1)
        kept = 2 * self.hidden + routing + self._operand(elements) + products
        filled = copy + 2 * elements if self._is_fp8 else 0
        # Gradients: of the output, of what the experts return, and of gate and up projections with those of the input.
        gradients = self.hidden + 2 * copy + gate_and_up
        return SublayerMemory(
            input=self.hidden,
            kept=kept,
            backward=max(copies * copy + self.hidden, gradients) + filled,
            forward=3 * self.hidden + routing + (copies + 1) * copy + routed * channels * self.width + filled,
        )

    def kept(self, sparse_layers: Sequence[bool]) -> int:
        """Return the bytes that a forward pass keeps of these layers, each with experts or without."""
        return sum(
            sublayer.kept - self._not_kept(sublayer, recomputes)
            for is_sparse in sparse_layers
            for sublayer, recomputes in self._sublayers(is_sparse)
        )

    def at_backward(self, is_sparse: bool) -> int:
        """Return the peak bytes of a layer's backward pass beside what is kept, including recomputation."""
        freed = peak = 0
        for sublayer, recomputes in reversed(self._sublayers(is_sparse)):
            recomputed = self._not_kept(sublayer, recomputes) + self.hidden if recomputes else 0
            peak = max(peak, recomputed + sublayer.backward - freed)
            freed = sublayer.kept - self._not_kept(sublayer, recomputes)
        return peak

    def at_loss(self, role: Role) -> dict[str, int]:
        """Return the parts that the last stage holds beside what is kept, while the output layer computes gradients."""
        shape, hidden_elements = self.settings, self.region_tokens * self.settings.hidden_size
        final_norm = 2 * self.hidden
        if role == "critic":  # the value head computes in fp32
            gathered = hidden_elements * self.width if self.layout.sequence_parallel else 0
            return {"output layer": final_norm + gathered + hidden_elements * (2 * _FP32 + self.width)}
        weight = shape.padded_vocab_size // self.layout.tensor * shape.hidden_size * self.width
        gradients = max(weight + hidden_elements * self.width, self._chunk)
        return {"logits": self._logits * self.width, "output layer": final_norm + self._gathered + gradients}

    @property
    def _logits(self) -> int:
        return self.region_tokens * self.settings.padded_vocab_size // self.layout.tensor

    @property
    def _chunk(self) -> int:
        return min(LOGITS_CHUNK, self._logits * _FP32)

    def pass_peak(self, role: Role) -> int:
        """Return the peak bytes of a forward pass that keeps nothing."""
        hidden_elements = self.region_tokens * self.settings.hidden_size
        output_layer = self._gathered + self._chunk if role == "policy" else hidden_elements * _FP32
        sublayers = [
            sublayer for is_sparse in set(self.settings.sparse_layers) for sublayer, _ in self._sublayers(is_sparse)
        ]
        return max(*(sublayer.forward for sublayer in sublayers), 2 * self.hidden + output_layer)

    def _sublayers(self, is_sparse: bool) -> tuple[tuple[SublayerMemory, bool], ...]:
        """Return the sub-layers of a layer in order, and whether the backward pass recomputes them."""
        recompute, second = self.config.model.recompute, self.experts if is_sparse else self.mlp
        return (self.attention, recompute is Recompute.full), (second, recompute is not Recompute.none)

    def _not_kept(self, sublayer: SublayerMemory, recomputes: bool) -> int:
        """Return the bytes that recomputation saves: all but the input."""
        return sublayer.kept - sublayer.input if recomputes else 0
