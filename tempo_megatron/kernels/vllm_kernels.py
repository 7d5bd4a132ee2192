"""vLLM's CUDA and Triton kernels, with the arguments under which a result depends on its own row alone.

vLLM is imported when a kernel runs. Its version is pinned, because these kernels are not part of its public interface.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from tempo_megatron.utils.packages import installed_versions

SUPPORTED_VERSION = "0.26.0"
_TILE = 128
"""Rows and entries of a tile of a product."""


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


def rotate_in_place(positions: Tensor, query: Tensor, key: Tensor, channels: int, table: Tensor) -> None:
    """Rotates query and key [tokens, heads * channels] by the angles of `table` [positions, channels]."""
    _custom_ops().rotary_embedding(positions, query, key, channels, table, True)


def silu_and_multiply(gate_and_up: Tensor) -> Tensor:
    """Returns silu(gate) * up of [..., 2 * width]; silu is rounded before the product."""
    _custom_ops()
    product = gate_and_up.new_empty((*gate_and_up.shape[:-1], gate_and_up.shape[-1] // 2))
    torch.ops._C.silu_and_mul(product, gate_and_up)
    return product


@functools.cache
def _flash_attention_3() -> Callable[..., tuple[Tensor, Tensor]]:
    require_supported_version()  # It reads files, so that a call for each layer would take a third of a millisecond.
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns causal attention [tokens, heads, channels] and the log of its normalizers [heads, tokens] fp32.

    The kernel is FlashAttention 3 (arXiv 2407.08608). One split keeps the order of its sums the same for every length.
    """
    output, log_normalizer = _flash_attention_3()(
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


def product(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns inputs [rows, width] times weight [entries, width], both bf16, as [rows, entries] of `dtype`.

    The kernel sums in fp32 and in one order, whatever the number of rows.
    """
    from vllm.model_executor.layers.batch_invariant import matmul_kernel_persistent

    rows, width, entries = inputs.shape[0], inputs.shape[1], weight.shape[0]
    result = torch.empty((rows, entries), device=inputs.device, dtype=dtype)
    processors = torch.cuda.get_device_properties(inputs.device).multi_processor_count
    tiles = -(-rows // _TILE) * -(-entries // _TILE)
    columns = weight.t()
    matmul_kernel_persistent[(min(processors, tiles),)](
        inputs,
        columns,
        result,
        None,
        rows,
        entries,
        width,
        *inputs.stride(),
        *columns.stride(),
        *result.stride(),
        BLOCK_SIZE_M=_TILE,
        BLOCK_SIZE_N=_TILE,
        BLOCK_SIZE_K=64,
        GROUP_SIZE_M=8,
        NUM_SMS=processors,
        A_LARGE=inputs.numel() > 2**31,
        B_LARGE=weight.numel() > 2**31,
        C_LARGE=result.numel() > 2**31,
        HAS_BIAS=False,
        num_stages=3,
        num_warps=8,
    )
    return result


def launch_token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns the log-probs [rows] of `tokens` [rows] under fp32 logits [rows, entries]."""
    from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

    log_probs: Tensor = compute_token_logprobs(logits, tokens[:, None])
    return log_probs[:, 0]
