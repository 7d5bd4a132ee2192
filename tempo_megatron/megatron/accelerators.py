"""What NVIDIA's optional libraries take over where they are there."""

from __future__ import annotations

import importlib.util

import torch


def apex_accumulates_gradients() -> bool:
    """Whether NVIDIA Apex has the kernels that add weight gradients to fp32 buffers in the product itself."""
    return torch.cuda.is_available() and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def let_transformer_engine_accumulate_gradients(model: torch.nn.Module) -> None:
    """Transformer Engine's linear layers do the same without Apex, which megatron-core asks for before it lets them."""
    for module in model.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True  # type: ignore[assignment]
