"""Memory of vLLM on one GPU: its weights, its workspace and its KV cache.

The KV cache has `generation.kv_cache_gib`, or gets what is left of `generation.gpu_memory_utilization`
(`EngineMemory.kv_cache_bytes`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tempo_megatron.config import Config, Precision, RolloutPrecision
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.planning.flops import active_channels
from tempo_megatron.planning.layout import Layout, Machine
from tempo_megatron.planning.memory import GIB, Parts
from tempo_megatron.planning.parameters import EXPERTS, RankParameters, rank_parameters

_STEP_TOKENS = 16384
"""The tokens of one step of chunked prefill, as vLLM chooses them on these GPUs."""
_SAMPLER_COPIES = 3
"""The fp32 copies of the logits of all sequences: raw logits, scaled logits and log-probs."""


@dataclass(frozen=True)
class EngineMemory:
    """The memory of one replica on one of its GPUs."""

    settings: BackboneSettings
    config: Config
    layout: Layout
    machine: Machine

    @property
    def weight_bytes(self) -> int:
        fp8_elements = self._parameters.linear if self.config.generation.precision is RolloutPrecision.fp8 else 0
        return self._parameters.total * self._width - fp8_elements * (self._width - 1)

    @property
    def expert_bytes(self) -> int:
        """The bytes of the experts among the weights. The ranks of a replica share them."""
        return self._parameters.by_kind[EXPERTS] * self._width

    @property
    def idle_share(self) -> float:
        """The share of a layer's experts that a token is not sent to; 0 without experts."""
        experts = self.settings.experts
        return 1 - experts.experts_per_token / experts.num_experts if experts else 0.0

    @property
    def _parameters(self) -> RankParameters:
        return rank_parameters(self.settings, "policy", self.layout.replica, 1, 0, self.layout.replica)

    @property
    def _width(self) -> int:
        return 2 if self.config.model.precision is Precision.bf16 else 4

    @property
    def workspace_bytes(self) -> int:
        """Bytes of a prefill step's activations and of sampling, which vLLM measures at its start."""
        shape, ranks = self.settings, self.layout.replica
        token_bytes = 2 * (4 * shape.hidden_size + 3 * active_channels(shape) // ranks)
        logits = self.config.generation.max_num_seqs * shape.padded_vocab_size * 4 * _SAMPLER_COPIES
        return _STEP_TOKENS * token_bytes + logits

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the KV cache: those that the recipe sets, else what vLLM's share of the GPU leaves.

        Negative if the rest exceeds the share.
        """
        if gib := self.config.generation.kv_cache_gib:
            return round(gib * GIB)
        budget = self.config.generation.gpu_memory_utilization * self.machine.usable_gib * GIB
        return int(budget) - self.weight_bytes - self.workspace_bytes

    def sequence_cache_bytes(self, tokens: int) -> int:
        """Return the bytes of the KV cache that a sequence of `tokens` tokens takes on one rank."""
        shape = self.settings
        groups = max(1, shape.num_query_groups // self.layout.replica)
        cached_tokens = sum(min(tokens, layer.window or tokens) for layer in shape.attention)
        return 2 * groups * shape.kv_channels * self._width * cached_tokens

    def concurrent_sequences(self, tokens: float) -> int:
        """Return how many sequences are decoded at once if each holds `tokens` tokens on average."""
        fit = self.kv_cache_bytes // max(1, self.sequence_cache_bytes(max(1, round(tokens))))
        return max(0, min(self.config.generation.max_num_seqs, fit))

    def parts(self) -> Parts:
        return {
            "weights of the generator": self.weight_bytes,
            "work of the generator": self.workspace_bytes,
            "KV cache": self.kv_cache_bytes,
        }
