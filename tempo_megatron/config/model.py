"""Settings of the model and of its distribution over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class Numerics(StrEnum):
    default = "default"
    exact = "exact"
    """Generator and policy call the same kernels, so that their log-probs are equal to the last bit."""


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
    """Those of every MLP and of all experts."""
    full = "full"
    """Those of every layer. Only the input of each layer is kept."""


@dataclass
class ModelConfig:
    hf_path: str = setting(
        "", "Hugging Face directory: shape, tokenizer, and the weights of the start without a checkpoint (required)"
    )
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
    virtual_pipeline_model_parallel_size: int = setting(
        1,
        "VPP: number of chunks that the layers of each stage are divided into; above 1 micro-batches pass the stages "
        "once for each chunk, which shortens the time that stages wait (interleaved schedule); needs PP > 1",
        at_least=1,
    )
    sequence_parallel: bool = setting(
        False, "split the activations outside tensor-parallel layers along the sequence; needs TP > 1"
    )
    context_parallel_size: int = setting(
        1, "CP: number of ranks that share every sequence of a micro-batch", at_least=1
    )
    expert_model_parallel_size: int = setting(
        1,
        "EP: number of ranks that share the experts of a layer; each rank of TP x CP x DP holds whole experts",
        at_least=1,
    )
