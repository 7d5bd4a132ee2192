"""Lets vLLM compute with the kernels that the trainer calls too, so that both have the same log-probs (`numerics`).

vLLM's batch-invariant mode gives attention in one split. Four parts of the model are replaced: products in layers,
norms, the output layer, and the table of RoPE. Their names are internal to vLLM, hence the check of its version.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.conversion.mapping import BackboneSettings
from tempo_megatron.kernels import vllm_kernels
from tempo_megatron.kernels.logits import fp32_logits
from tempo_megatron.kernels.norm import rms_norm_forward
from tempo_megatron.kernels.products import ordered_product
from tempo_megatron.kernels.rope import rotary_table

ENGINE_SETTINGS = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
"""Settings of the engine. torch.compile would fuse the kernels into others; CUDA graphs of decoding steps run them."""


def install() -> None:
    """Replaces parts of vLLM in this process. Call it before the engine starts.

    Raises RuntimeError if the installed vLLM is not the version whose parts these are.
    """
    vllm_kernels.require_supported_version()
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    # The trainer calls this runner's log-softmax. With the variable vLLM refuses where it would take the other runner.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    from vllm.distributed.parallel_state import set_custom_all_reduce
    from vllm.model_executor.layers import batch_invariant, layernorm
    from vllm.model_executor.layers import linear as linear_layers
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.v1.worker import gpu_worker

    # It would replace torch's softmax, mean and bmm, and set NCCL to one channel, for the trainer too.
    batch_invariant.init_batch_invariance = _change_nothing
    linear_layers.linear_batch_invariant = _product
    layernorm.rms_norm_batch_invariant = _normalize
    LogitsProcessor._apply_head = _fp32_head
    # The batch-invariant mode turns vLLM's fast all-reduce off. It sums in fp32 and rounds once, as NCCL does for two
    # ranks.
    gpu_worker.set_custom_all_reduce = lambda enabled: set_custom_all_reduce(True)


def _change_nothing() -> None: ...


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns inputs [..., width] times weight [entries, width]. vLLM makes the first call for each weight before it
    captures CUDA graphs."""
    assert bias is None  # Validation refuses models with biases.
    product = ordered_product(inputs.reshape(-1, inputs.shape[-1]), weight, inputs.dtype)
    return product.view(*inputs.shape[:-1], -1)


def _normalize(
    inputs: Tensor, weight: Tensor, epsilon: float = 1e-6, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns the norm of the inputs; with a residual, that of the rounded sum, and the sum.

    vLLM's kernel for both normalizes the sum before it is rounded, or after, depending on the number of rows.
    """
    normalized, _, total = rms_norm_forward(inputs, weight, epsilon, residual)
    return normalized if residual is None else (normalized, total)


def _fp32_head(processor: Any, head: Any, hidden: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the logits of hidden [..., width] in fp32. The supported families have no bias."""
    assert bias is None
    return fp32_logits(hidden.reshape(-1, hidden.shape[-1]), head.weight).view(*hidden.shape[:-1], -1)


@torch.inference_mode()
def set_rotary_tables(model: Any, settings: BackboneSettings) -> None:
    """Writes the trainer's table of RoPE into every rotary embedding of vLLM's model.

    vLLM computes the frequencies on the device. A last bit of a frequency is many of a distant position's angle.
    """
    (rope,) = settings.ropes
    frequencies = rope.inverse_frequencies(settings.kv_channels)
    for module in model.modules():
        table = getattr(module, "cos_sin_cache", None)
        if table is not None:
            positions = torch.arange(len(table), dtype=torch.float32, device=table.device)
            table.copy_(rotary_table(torch.outer(positions, frequencies.to(table.device)), table.dtype))
