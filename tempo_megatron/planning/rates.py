"""Measured rates, and assumptions where nothing was measured.

Rates of steps and passes are H100s', the host's seconds H200s' (docs/results/2026-11-25-gpu.md, 2026-11-26-gpu.md).
The assumptions are guesses, to be replaced by measurements on a cluster. `tempo plan` prints them with its estimate.
"""

from __future__ import annotations

from tempo_megatron.conversion.mapping import Role

TERA = 1e12

STEP_FLOPS: dict[tuple[Role, bool], float] = {
    ("policy", False): 629 * TERA,
    ("policy", True): 799 * TERA,
    ("critic", False): 524 * TERA,
    ("critic", True): 690 * TERA,
}
"""The FLOP/s of one GPU in a training step, by role and whether FP8 is used.

The policy was measured on packed responses in micro-batches of 16,384 tokens, the critic on equal lengths of 8,192.
"""
PASS_FLOPS: dict[tuple[Role, bool], float] = {
    ("policy", False): 562 * TERA,
    ("policy", True): 722 * TERA,
    ("critic", False): 578 * TERA,
    ("critic", True): 829 * TERA,
}
"""The FLOP/s of a pass without gradients, measured on equal lengths."""

_PACKED_VALUES = 134322 * 8 * 4096
EXPOSED_SECONDS_PER_VALUE = {
    False: (1.4899 - 2.5881 / 2) / _PACKED_VALUES / (1 / 2),
    True: (1.3134 - 2.0385 / 2) / _PACKED_VALUES / (1 / 2),
}
"""The seconds of exposed tensor-parallel communication, by whether FP8 is used.

This is what a step at TP2 took beyond half of one GPU's time. It counts for each value of the residual stream of a
layer, times the share (TP - 1) / TP that comes from other ranks.
"""
PASS_EXPOSED_SHARE = 0.4
"""The share of it in a pass without gradients, which has 4 of a step's 10 exchanges per layer."""
CONTEXT_PARALLEL_SPEED = 421 / 586
"""The speed that remains after each doubling of CP, from one step at CP2 on sequences of 8,192."""

LAYER_HOST_SECONDS = {
    "dense": {"pass": 2.9e-3, "step": 7e-3},
    "TP": {"pass": 4.2e-3, "step": 12e-3},
    "experts": {"pass": 18e-3, "step": 43e-3},
}
"""The seconds in which the host starts the work of one layer and micro-batch.

- Dense layers, TP1: passes and steps of a 1.7B shape in micro-batches of 8,192 tokens take 2.9 to 3.1 and 6.5 to 6.9 ms
  (docs/results/2026-11-26-gpu.md), in those of 4,096 tokens 3.3, and 7.5 to 8.0 (2026-11-30-exact-proof.md).
- Dense layers under TP: those of an 8B shape at TP2 in micro-batches of 8,448 tokens take 3.0 to 5.1 and 11.4 to 14.3
  ms. A step in FP8 that is bound by the host takes 11.1 (2026-11-26-gpu.md).
- Experts, 64 on a rank (2026-11-30-experts.md): what the device's time by this plan leaves of a layer's. It is 39 to 48
  ms in steps of 8 and 12 layers, 45 and 46 in an iteration with 4, and 55 to 66 on a slow host. That iteration's passes
  have 18 and 20. With fewer experts on a rank nothing was measured.

Hosts differ, so that each figure is right within a third.
"""
EXPERT_SPEED = 0.6
"""The device's speed in layers with experts, relative to dense ones.

One profiled step of 8 layers at EP2, whose two ranks agree: kernels other than communication run for 11.9 ms of a layer
and micro-batch of 8,192 tokens, beside 7 ms at the dense rate (docs/results/2026-11-30-experts.md).
"""

EXACT_SPEED = {"rollout": 1.0, "pass": 0.93, "step": 1.0}
"""The speed of `numerics: exact` relative to the default's, of the generator, and of the policy's passes and steps.

It was measured in whole iterations of a 1.7B shape, in micro-batches of 16,384 tokens
(docs/results/2026-11-30-exact-proof.md). Rollouts had 1.05, but not in each round.
"""

HOST_BYTES_PER_SECOND = 30e9
"""The rate between a GPU and pinned host memory."""
SYNC_BYTES_PER_SECOND = 54e9
"""The rate of a weight sync, for each GPU of a replica."""
SWITCH_SECONDS = 0.35
"""The seconds to wake the generator and put it to sleep."""
DECODE_HOST_SECONDS = 2.6e-3
"""The seconds of the host's work in a decoding step, beside those of each live sequence.

These and the device's seconds are fitted to steps of a 1.7B and an 8B shape at 1 to 128 live sequences
(docs/results/2026-11-29-gpu.md).
"""
DECODE_HOST_SEQUENCE_SECONDS = 0.04e-3
"""The seconds of the host's work for each live sequence of a decoding step."""
DECODE_DEVICE_SECONDS = 1.2e-3
"""The device's seconds in a decoding step beside memory reads and matrix products."""
_DECODE_BANDWIDTH_SHARE = 0.8
"""The share of the memory bandwidth at which weights and KV cache are read, fitted to a rollout at TP1."""
_BANDWIDTH_BY_GB = ((100, 4.8e12), (0, 3.35e12))
"""The memory bandwidth in bytes per second by the least GB of a GPU: H200 and H100, from NVIDIA's data sheets."""


def decode_bytes_per_second(gpu_gb: float) -> float:
    """Return the bytes per second that a decoding GPU reads, by its nominal memory in GB."""
    return _DECODE_BANDWIDTH_SHARE * next(bandwidth for least_gb, bandwidth in _BANDWIDTH_BY_GB if gpu_gb >= least_gb)


DECODE_REDUCE_SECONDS = 1e-5
"""The seconds of one all-reduce of a decoding step. A replica of several GPUs has two per layer."""
REDUCE_BYTES_PER_SECOND = {"node": 150e9, "network": 40e9}
"""The rate of a gradient reduction for each GPU, within a node and between nodes."""
EXCHANGE_BYTES_PER_SECOND = {"node": 240e9, "network": 40e9}
"""The rate of tokens sent to experts for each GPU.

In a profiled step of 8 layers at EP2 17.2 GB took 71 ms without waiting, the reduction of gradients included
(docs/results/2026-11-30-experts.md). Between nodes it is that of gradients, which is an assumption.
"""

ASSUMED = {
    "TP beyond 2, PP and CP": "extrapolated from two GPUs",
    "an all-reduce of a decoding step": f"{DECODE_REDUCE_SECONDS * 1e6:g} us",
    "gradients between nodes": f"{REDUCE_BYTES_PER_SECOND['network'] / 1e9:g} GB/s a GPU",
    "experts": "equally busy, with the host's work of 64 on each rank; between nodes at the rate of gradients",
    "gradients within a node": f"{REDUCE_BYTES_PER_SECOND['node'] / 1e9:g} GB/s a GPU",
}
"""The assumptions that nobody has measured yet, as `tempo plan` prints them."""
