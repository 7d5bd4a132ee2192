"""The model, how it is spread over ranks, and its generator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class Fp8(StrEnum):
    """How linear layers scale their operands to 8 bits; forward in E4M3, gradients in E5M2."""

    none = "none"
    tensorwise = "tensorwise"
    """one scale a tensor, from its present values"""
    delayed = "delayed"
    """one scale a tensor, from values of past passes, so that a pass and the step after it differ a little"""
    blockwise = "blockwise"
    """one scale a block of 128 or 128 x 128 values"""


class Recompute(StrEnum):
    """What the backward pass computes again rather than keeps."""

    none = "none"
    mlp = "mlp"
    full = "full"
    """every layer: its input alone is kept"""


class RolloutPrecision(StrEnum):
    same = "same"
    fp8 = "fp8"


class CheckWeights(StrEnum):
    never = "never"
    first = "first"
    always = "always"


@dataclass
class ModelConfig:
    hf_path: str = setting("", "directory of the Hugging Face model that policy and critic start from (required)")
    precision: Precision = setting(Precision.bf16, "parameters and activations; fp32 is the only choice on CPUs")
    fp8: Fp8 = setting(
        Fp8.none,
        "8-bit products of all linear layers (H100 or later): tensorwise, delayed, blockwise; embedding, attention, "
        "output layer and value head stay as they are",
    )
    fp8_edges_in_bf16: int = setting(
        0, "transformer layers at either end that stay in bf16; not with delayed scaling", at_least=0
    )
    recompute: Recompute = setting(
        Recompute.none, "activations computed again in the backward pass, to save memory: none, mlp, full"
    )


@dataclass
class ParallelConfig:
    processes_per_node: int = setting(
        1, "ranks that `tempo train` starts on this machine: one a GPU, or a CPU core", at_least=1
    )
    tensor_model_parallel_size: int = setting(1, "TP: ranks that share every layer", at_least=1)
    pipeline_model_parallel_size: int = setting(1, "PP: stages that the layers are cut into", at_least=1)
    sequence_parallel: bool = setting(False, "split activations between TP regions over the sequence; needs TP > 1")
    context_parallel_size: int = setting(1, "CP: ranks that share every sequence of a micro-batch", at_least=1)


@dataclass
class GenerationConfig:
    tensor_parallel_size: int = setting(0, "ranks of one vLLM replica; 0 takes the trainer's TP", at_least=0)
    max_response_tokens: int = setting(16384, "tokens; a response that reaches it is truncated", at_least=1)
    temperature: float = setting(1.0, "sampling temperature of training rollouts", above=0)
    top_p: float = setting(
        1.0,
        "nucleus sampling mass of training rollouts; below 1 log-probs of generator and trainer differ",
        above=0,
        at_most=1,
    )
    max_num_seqs: int = setting(256, "sequences that one replica decodes together", at_least=1)
    gpu_memory_utilization: float = setting(
        0.5, "share of a GPU's memory that vLLM may take; on CPUs see kv_cache_gib", above=0, at_most=1
    )
    kv_cache_gib: float = setting(
        1.0, "GiB of KV cache a rank on CPUs, which must hold a sequence of the longest; unused on GPUs", above=0
    )
    sleep: bool = setting(
        True,
        "give GPU memory back between rollouts; false for models that fit beside it, or to share a GPU with other runs",
    )
    enforce_eager: bool = setting(False, "skip CUDA graphs and compilation: starts sooner, generates slower")
    precision: RolloutPrecision = setting(
        RolloutPrecision.same, "weights that generate: the trainer's, or quantized to fp8 at every sync (GPUs alone)"
    )
    check_weights: CheckWeights = setting(
        CheckWeights.first, "syncs after which every tensor's checksum is compared with the trainer's"
    )
    keep_rollouts: bool = setting(
        False, "keep the rollouts of all iterations, for `tempo replay`; false: those since the newest checkpoint"
    )
    replay: str = setting("", "directory of kept rollouts that take the generator's place; `tempo replay` sets it")
    log_prob_alarm: float = setting(
        1.05,
        "mean of exp|log-prob of generator - of trainer| above which the run says that the two have parted",
        at_least=1,
    )
