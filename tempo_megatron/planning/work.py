"""Floating-point operations of a pass over a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tempo_megatron.conversion.mapping import BackboneSettings, Role


@dataclass(frozen=True)
class Work:
    """Multiplications and additions of the matrix products of a model, two for each weight and token.

    Counted: the projections and MLPs of every layer, the output layer (the policy's over its vocabulary, the critic's
    over one value), and attention's two products over the tokens that each token may see, a causal mask counting as
    half and a window as what it lets through. Not counted: the embedding, which is a look-up, norms, RoPE, softmax, the
    loss, recomputation, and padding of any kind.
    """

    settings: BackboneSettings
    role: Role

    @property
    def weights(self) -> int:
        """Weights that a token is multiplied with: all matrices but the embedding."""
        shape = self.settings
        queries = shape.num_attention_heads * shape.kv_channels
        keys = shape.num_query_groups * shape.kv_channels
        layer = shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.ffn_hidden_size)
        return shape.num_layers * layer + shape.hidden_size * self.outputs

    @property
    def outputs(self) -> int:
        """Values that the output layer has for a token."""
        return self.settings.vocab_size if self.role == "policy" else 1

    def forward(self, lengths: Iterable[int]) -> float:
        """FLOPs of reading sequences of these lengths."""
        shape = self.settings
        channels = shape.num_attention_heads * shape.kv_channels
        windows = [layer.window for layer in shape.attention]
        total = 0.0
        for length in lengths:
            total += 2 * self.weights * length
            total += sum(4 * channels * _seen(length, window) for window in windows)
        return total

    def step(self, lengths: Iterable[int]) -> float:
        """FLOPs of learning from them: the backward pass has two products for each of the forward pass's."""
        return 3 * self.forward(lengths)


def _seen(length: int, window: int | None) -> float:
    """Pairs of a token and one that it sees: half the square under a causal mask."""
    if window is None or window >= length:
        return length**2 / 2
    return window * length - window**2 / 2
