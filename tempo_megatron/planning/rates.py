"""How fast things went where they were measured, and what is assumed where they were not.

Measured on H100s and, whole iterations, on H200s (docs/results/2026-11-25-gpu.md, 2026-11-26-gpu.md). The assumptions
are guesses, to be replaced by measurements on a cluster; `tempo plan` prints them with its estimate.
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
"""FLOP/s of a GPU in a step, by role and whether in 8 bits, one GPU: the policy's on packed responses in micro-batches
of 16,384 tokens, the critic's on equal lengths of 8,192"""
PASS_FLOPS: dict[tuple[Role, bool], float] = {
    ("policy", False): 562 * TERA,
    ("policy", True): 722 * TERA,
    ("critic", False): 578 * TERA,
    ("critic", True): 829 * TERA,
}
"""of a pass without gradients, on equal lengths"""

_PACKED_VALUES = 134322 * 8 * 4096
EXPOSED_A_VALUE = {
    False: (1.4899 - 2.5881 / 2) / _PACKED_VALUES / (1 / 2),
    True: (1.3134 - 2.0385 / 2) / _PACKED_VALUES / (1 / 2),
}
"""seconds that a step at TP2 took beyond half of one GPU's, by whether in 8 bits: for each value of the residual stream
of a layer, times the share (TP - 1) / TP of it that comes from other ranks"""
EXPOSED_OF_A_PASS = 0.4
"""of that in a pass without gradients: 4 of a step's 10 exchanges a layer"""
CONTEXT = 421 / 586
"""speed that is left for each doubling of CP: CP2 on sequences of 8,192, one step"""

SPEED_IN_A_RUN = 0.7
"""of passes and steps in whole iterations, over that of the benchmark's steps above: their sequences are shorter, their
mini-batches smaller, their vocabulary larger. Fitted to iterations of a 1.7B and an 8B shape in bf16 on two GPUs"""

HOST_BYTES = 30e9
"""bytes a second between a GPU and pinned host memory"""
SYNC_BYTES = 54e9
"""bytes a second of a sync, for each GPU of a replica"""
SWITCH_SECONDS = 0.35
"""waking and putting to sleep the generator"""
DECODE_STEP_SECONDS = 2e-3
"""a decoding step beside what it reads and multiplies"""
_DECODE_SHARE = 0.8
"""of the memory's bandwidth that weights and KV cache are read at; fitted, as the line above, to a rollout at TP1"""
_BANDWIDTH_FROM_GB = ((100, 4.8e12), (0, 3.35e12))
"""bytes a second by the GB that a GPU has at least: H200 and H100, NVIDIA's data sheets"""


def decode_bytes(gpu_gb: float) -> float:
    """Bytes a second that a decoding GPU reads, by the memory that it is sold with."""
    return _DECODE_SHARE * next(bandwidth for least, bandwidth in _BANDWIDTH_FROM_GB if gpu_gb >= least)


DECODE_REDUCE_SECONDS = 1e-5
"""an all-reduce of a decoding step, two a layer, where a replica has several GPUs"""
REDUCE_BYTES = {"node": 150e9, "network": 40e9}
"""bytes a second of a gradient reduction, for each GPU, within a node and between nodes"""

ASSUMED = {
    "TP beyond 2, PP and CP": "extrapolated from two GPUs",
    "an all-reduce of a decoding step": f"{DECODE_REDUCE_SECONDS * 1e6:g} us",
    "gradients between nodes": f"{REDUCE_BYTES['network'] / 1e9:g} GB/s a GPU",
    "gradients within a node": f"{REDUCE_BYTES['node'] / 1e9:g} GB/s a GPU",
}
"""what nobody has measured yet, in words"""
