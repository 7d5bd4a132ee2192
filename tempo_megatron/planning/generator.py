"""What vLLM takes of a GPU, and how many sequences fit into it."""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config import Config, Precision, RolloutPrecision
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.planning.layout import Layout, Machine
from tempo_megatron.planning.memory import GIB, Parts
from tempo_megatron.planning.parameters import parameters

_STEP_TOKENS = 16384
"""tokens of a step of chunked prefill, vLLM's choice on these GPUs"""
_SAMPLER_COPIES = 3
"""fp32 copies of the logits of all sequences: raw, scaled, log-probs"""


@dataclass(frozen=True)
class EngineMemory:
    """A replica's part on one GPU."""

    settings: BackboneSettings
    config: Config
    layout: Layout
    machine: Machine

    @property
    def weights(self) -> int:
        held = parameters(self.settings, "policy", self.layout.replica, 1, 0)
        width = 2 if self.config.model.precision is Precision.bf16 else 4
        spared = held.linear if self.config.generation.precision is RolloutPrecision.fp8 else 0
        return held.total * width - spared * (width - 1)

    @property
    def working(self) -> int:
        """Activations of a step of prefill and what sampling takes, which vLLM measures as it starts."""
        shape, ranks = self.settings, self.layout.replica
        token = 2 * (4 * shape.hidden_size + 3 * shape.ffn_hidden_size // ranks)
        sampled = self.config.generation.max_num_seqs * shape.padded_vocab_size * 4 * _SAMPLER_COPIES
        return _STEP_TOKENS * token + sampled

    @property
    def cache(self) -> int:
        """Bytes of the KV cache; negative where the rest takes more than vLLM may."""
        budget = self.config.generation.gpu_memory_utilization * self.machine.usable_gib * GIB
        return int(budget) - self.weights - self.working

    def sequence(self, tokens: int) -> int:
        """Bytes of the KV cache that a sequence of so many tokens takes on a rank."""
        shape = self.settings
        groups = max(1, shape.num_query_groups // self.layout.replica)
        width = 2 if self.config.model.precision is Precision.bf16 else 4
        held = sum(min(tokens, layer.window or tokens) for layer in shape.attention)
        return 2 * groups * shape.kv_channels * width * held

    def together(self, tokens: float) -> int:
        """Sequences that are decoded at once when each holds `tokens` on average."""
        fit = self.cache // max(1, self.sequence(max(1, round(tokens))))
        return max(0, min(self.config.generation.max_num_seqs, fit))

    def parts(self) -> Parts:
        return {"weights of the generator": self.weights, "work of the generator": self.working, "KV cache": self.cache}
