"""What NVIDIA's optional libraries take over where they are there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def apex_accumulates_gradients() -> bool:
    """Whether NVIDIA Apex has the kernels that add weight gradients to fp32 buffers in the product itself."""
    return torch.cuda.is_available() and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def apex_is_another_project() -> bool:
    """Whether what is installed as `apex` is not NVIDIA's: the package index has another project of that name."""
    found = importlib.util.find_spec("apex")
    places = found.submodule_search_locations if found else None
    return found is not None and not any(Path(place, "multi_tensor_apply").is_dir() for place in places or ())


def let_transformer_engine_accumulate_gradients(model: torch.nn.Module) -> None:
    """Transformer Engine's linear layers do the same without Apex, which megatron-core asks for before it lets them."""
    for module in model.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True  # type: ignore[assignment]
