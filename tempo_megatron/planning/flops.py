"""Floating-point operations of a pass over a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tempo_megatron.conversion.mapping import BackboneSettings, Role


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of the matrix products of a model, two for each weight and token.

    - Counted: projections and MLPs of all layers, routers and the experts that a token is sent to, the output layer
      (over the vocabulary for the policy, over one value for the critic), and attention's two products over the tokens
      that each token may see. A causal mask counts as half, a window as what it lets through.
    - Not counted: the embedding (a look-up), norms, RoPE, softmax, the loss, recomputation, and padding.
    """

    settings: BackboneSettings
    role: Role

    @property
    def weights(self) -> int:
        """The number of weights that each token is multiplied with: all matrices but the embedding."""
        shape = self.settings
        return shape.attention_weights + shape.mlp_weights + shape.output_weights(self.role)

    def forward(self, lengths: Iterable[int]) -> float:
        """Return the FLOPs of a forward pass over sequences of these lengths."""
        shape = self.settings
        channels = shape.num_attention_heads * shape.kv_channels
        windows = [layer.window for layer in shape.attention]
        total = 0.0
        for length in lengths:
            total += 2 * self.weights * length
            total += sum(4 * channels * _visible_pairs(length, window) for window in windows)
        return total

    def step(self, lengths: Iterable[int]) -> float:
        """Return the FLOPs of a training step: the backward pass has two products for each one of the forward pass."""
        return 3 * self.forward(lengths)


def active_channels(settings: BackboneSettings) -> int:
    """Return the most MLP channels that a token passes in a layer: those of one MLP, or of the token's experts."""
    dense = 0 if all(settings.sparse_layers) else settings.ffn_hidden_size
    if settings.experts is None:
        return dense
    return max(dense, settings.experts.experts_per_token * settings.experts.ffn_hidden_size)


def _visible_pairs(length: int, window: int | None) -> float:
    """Return the number of pairs of a token and a token that it sees: half the square under a causal mask."""
    if window is None or window >= length:
        return length**2 / 2
    return window * length - window**2 / 2
