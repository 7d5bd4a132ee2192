"""vLLM's CUDA and Triton kernels, with the arguments under which a result depends on its own row alone.

vLLM is imported when a kernel runs. Its version is pinned, because these kernels are not part of its public interface.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from tempo_megatron.utils.packages import installed_versions

SUPPORTED_VERSION = "0.26.0"
_TILE = 128
"""Rows and entries of a tile of the output layer's product."""


def require_supported_version() -> None:
    """Raises RuntimeError if another vLLM is installed than the one whose kernels were measured."""
    installed = installed_versions(["vllm"]).get("vllm", "none")
    if installed != SUPPORTED_VERSION:
        raise RuntimeError(f"numerics exact calls kernels of vLLM {SUPPORTED_VERSION}; installed is {installed}")


@functools.cache
def _custom_ops() -> ModuleType:
    """Returns vLLM's module of compiled kernels, which importing it registers."""
    require_supported_version()
    import vllm._custom_ops as custom_ops

    return custom_ops


def launch_rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Returns inputs [..., width] normalized and multiplied by `weight` [width], rounded once."""
    from vllm.model_executor.layers.batch_invariant import rms_norm_batch_invariant

    normalized: Tensor = rms_norm_batch_invariant(inputs, weight, epsilon)
    return normalized


def rotate_in_place(positions: Tensor, query: Tensor, key: Tensor, channels: int, table: Tensor) -> None:
    """Rotates query and key [tokens, heads * channels] by the angles of `table` [positions, channels]."""
    _custom_ops().rotary_embedding(positions, query, key, channels, table, True)


def silu_and_multiply(gate_and_up: Tensor) -> Tensor:
    """Returns silu(gate) * up of [..., 2 * width]; silu is rounded before the product."""
    _custom_ops()
    product = gate_and_up.new_empty((*gate_and_up.shape[:-1], gate_and_up.shape[-1] // 2))
    torch.ops._C.silu_and_mul(product, gate_and_up)
    return product


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns causal attention [tokens, heads, channels] and the log of its normalizers [heads, tokens] fp32.

    The kernel is FlashAttention 3 (arXiv 2407.08608). One split keeps the order of its sums the same for every length.
    """
    require_supported_version()
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    output, log_normalizer = flash_attn_varlen_func(
        query,
        key,
        value,
        max_seqlen_q=longest,
        cu_seqlens_q=boundaries,
        max_seqlen_k=longest,
        cu_seqlens_k=boundaries,
        softmax_scale=scale,
        causal=True,
        num_splits=1,
        fa_version=3,
        return_softmax_lse=True,
    )
    return output, log_normalizer


def product(inputs: Tensor, weight: Tensor) -> Tensor:
    """Returns inputs [rows, width] times weight [entries, width] in their dtype, summed in one order in fp32."""
    from vllm.model_executor.layers.batch_invariant import matmul_persistent

    result: Tensor = matmul_persistent(inputs, weight.t())
    return result


def fp32_product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Returns hidden [rows, width] times weight [entries, width], both bf16, as fp32 [rows, entries].

    The kernel sums in fp32 and in one order, whatever the number of rows.
    """
    from vllm.model_executor.layers.batch_invariant import matmul_kernel_persistent

    rows, width, entries = hidden.shape[0], hidden.shape[1], weight.shape[0]
    logits = torch.empty((rows, entries), device=hidden.device, dtype=torch.float32)
    processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
    tiles = -(-rows // _TILE) * -(-entries // _TILE)
    columns = weight.t()
    matmul_kernel_persistent[(min(processors, tiles),)](
        hidden,
        columns,
        logits,
        None,
        rows,
        entries,
        width,
        *hidden.stride(),
        *columns.stride(),
        *logits.stride(),
        BLOCK_SIZE_M=_TILE,
        BLOCK_SIZE_N=_TILE,
        BLOCK_SIZE_K=64,
        GROUP_SIZE_M=8,
        NUM_SMS=processors,
        A_LARGE=hidden.numel() > 2**31,
        B_LARGE=weight.numel() > 2**31,
        C_LARGE=logits.numel() > 2**31,
        HAS_BIAS=False,
        num_stages=3,
        num_warps=8,
    )
    return logits


def launch_token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns the log-probs [rows] of `tokens` [rows] under fp32 logits [rows, entries]."""
    from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

    log_probs: Tensor = compute_token_logprobs(logits, tokens[:, None])
    return log_probs[:, 0]
