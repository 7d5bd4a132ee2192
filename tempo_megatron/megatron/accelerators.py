"""Detects NVIDIA's optional libraries and enables what they accelerate."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def apex_accumulates_gradients() -> bool:
    """Returns whether NVIDIA Apex has the kernels that add weight gradients to fp32 buffers inside the product."""
    return torch.cuda.is_available() and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def apex_is_another_project() -> bool:
    """Returns whether the installed `apex` is another project of that name, which the package index has too."""
    spec = importlib.util.find_spec("apex")
    locations = spec.submodule_search_locations if spec else None
    return spec is not None and not any(Path(path, "multi_tensor_apply").is_dir() for path in locations or ())


def transformer_engine_permutes_tokens() -> bool:
    """Returns whether Transformer Engine has the kernels that sort tokens by experts, and a GPU to run them."""
    from megatron.core.transformer.moe import moe_utils

    return torch.cuda.is_available() and moe_utils.fused_permute_with_probs is not None


def let_transformer_engine_accumulate_gradients(model: torch.nn.Module) -> None:
    """Lets Transformer Engine's linear layers add weight gradients to fp32 buffers inside the product.

    They need no Apex for it, but megatron-core enables it only with Apex.
    """
    for module in model.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True  # type: ignore[assignment]
