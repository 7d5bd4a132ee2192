"""Settings of the generator: sampling, its share of the device, and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tempo_megatron.config.fields import setting


class RolloutPrecision(StrEnum):
    same = "same"
    fp8 = "fp8"


class CheckWeights(StrEnum):
    never = "never"
    first = "first"
    always = "always"


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
        "share of a GPU's memory for vLLM, which must be free when it starts; unused on CPUs",
        above=0,
        at_most=1,
    )
    kv_cache_gib: float = setting(
        0.0,
        "GiB of KV cache of a rank, enough for one sequence of maximum length, also where runs share a GPU; 0: 1 on "
        "CPUs, on GPUs what weights and activations leave of gpu_memory_utilization",
        at_least=0,
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
