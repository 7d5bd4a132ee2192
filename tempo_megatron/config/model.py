"""Settings of the model, of its distribution over ranks, and of the generator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class Fp8(StrEnum):
    """How linear layers scale their operands to 8 bits: E4M3 in the forward pass, E5M2 for gradients."""

    none = "none"
    tensorwise = "tensorwise"
    """One scale per tensor, from its present values."""
    delayed = "delayed"
    """One scale per tensor, from values of past passes. A scoring pass and the step after it then differ a little."""
    blockwise = "blockwise"
    """One scale per block of 128 or 128 x 128 values."""


class Recompute(StrEnum):
    """The activations that the backward pass computes again instead of keeping them."""

    none = "none"
    mlp = "mlp"
    full = "full"
    """Those of every layer. Only the input of each layer is kept."""


class RolloutPrecision(StrEnum):
    same = "same"
    fp8 = "fp8"


class CheckWeights(StrEnum):
    never = "never"
    first = "first"
    always = "always"


@dataclass
class ModelConfig:
    hf_path: str = setting("", "Hugging Face directory of the model that policy and critic start from (required)")
    precision: Precision = setting(
        Precision.bf16, "precision of parameters and activations: bf16, or fp32, which CPUs need"
    )
    fp8: Fp8 = setting(
        Fp8.none,
        "8-bit matrix products in all linear layers, on H100 or later: none, tensorwise, delayed, blockwise; "
        "embedding, attention, output layer and value head keep their precision",
    )
    fp8_edges_in_bf16: int = setting(
        0, "number of first and of last transformer layers that stay in bf16; 0 with delayed scaling", at_least=0
    )
    recompute: Recompute = setting(
        Recompute.none, "activations that the backward pass computes again to save memory: none, mlp, full"
    )


@dataclass
class ParallelConfig:
    processes_per_node: int = setting(
        1, "ranks that `tempo train` starts on this machine, one per GPU or CPU core", at_least=1
    )
    tensor_model_parallel_size: int = setting(1, "TP: number of ranks that share every layer", at_least=1)
    pipeline_model_parallel_size: int = setting(1, "PP: number of stages that the layers are divided into", at_least=1)
    sequence_parallel: bool = setting(
        False, "split the activations outside tensor-parallel layers along the sequence; needs TP > 1"
    )
    context_parallel_size: int = setting(
        1, "CP: number of ranks that share every sequence of a micro-batch", at_least=1
    )


@dataclass
class GenerationConfig:
    tensor_parallel_size: int = setting(0, "ranks of one vLLM replica; 0: the trainer's TP", at_least=0)
    max_response_tokens: int = setting(
        16384, "longest response, in tokens; a response that reaches it is truncated", at_least=1
    )
    temperature: float = setting(1.0, "sampling temperature of training rollouts", above=0)
    top_p: float = setting(
        1.0,
        "nucleus sampling mass of training rollouts; below 1, log-probs of generator and trainer differ",
        above=0,
        at_most=1,
    )
    max_num_seqs: int = setting(256, "largest number of sequences that one vLLM replica decodes at a time", at_least=1)
    gpu_memory_utilization: float = setting(
        0.5,
        "share of a GPU's memory for vLLM: the KV cache takes what its weights leave; CPUs use kv_cache_gib",
        above=0,
        at_most=1,
    )
    kv_cache_gib: float = setting(
        1.0, "GiB of KV cache of a CPU rank, enough for one sequence of maximum length; unused on GPUs", above=0
    )
    sleep: bool = setting(
        True,
        "free the generator's GPU memory between rollouts; false where models fit beside it or runs share a GPU",
    )
    enforce_eager: bool = setting(
        False, "run vLLM without CUDA graphs and compilation: it starts sooner and generates slower"
    )
    precision: RolloutPrecision = setting(
        RolloutPrecision.same,
        "weights of the generator: same as the trainer's, or quantized to fp8 at every sync (GPUs only)",
    )
    check_weights: CheckWeights = setting(
        CheckWeights.first,
        "weight syncs after which every tensor's checksum is compared with the trainer's: never, first, always",
    )
    keep_rollouts: bool = setting(
        False, "keep the rollouts of all iterations for `tempo replay`; false: those since the newest checkpoint"
    )
    replay: str = setting("", "directory of kept rollouts that replace the generator; `tempo replay` sets it")
    log_prob_alarm: float = setting(
        1.05,
        "alarm when the mean of exp|log-prob of generator - log-prob of trainer| is above this",
        at_least=1,
    )
