"""The settings of a model that depend on its shape and on the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer import transformer_config as megatron_config

from tempo_megatron.config import Numerics, load_config
from tempo_megatron.megatron.model import transformer_config
from tempo_megatron.planning import shapes


@pytest.mark.parametrize(
    ("shape", "changes", "is_fused"),
    [("qwen3-8b", {}, False), ("llama3-8b", {"mlp_bias": True}, True), ("qwen3-8b", {"attention_bias": True}, True)],
)
def test_residual_additions_are_compiled_only_with_a_bias(
    shape: str, changes: dict[str, Any], is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one there is nothing to fuse, and torch.compile reaches its limit of variants on GPUs. The settings of
    GPUs are looked at without megatron-core, which refuses them here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(megatron_config, "TransformerConfig", SimpleNamespace)
    settings = shapes.backbone_shape(shapes.shape_config(shape, None, None) | changes)
    assert transformer_config(settings, load_config(None, []), Numerics.default).bias_dropout_fusion is is_fused
