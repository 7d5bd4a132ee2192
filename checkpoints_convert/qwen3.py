"""Qwen3, dense, 0.6B to 32B."""

from __future__ import annotations

from typing import Any

from checkpoints_convert import decoder
from checkpoints_convert.mapping import BackboneSettings, Entry


def settings(config: dict[str, Any]) -> BackboneSettings:
    """The backbone that a Qwen3 config.json describes. Raises ConversionError naming what it cannot map."""
    only = {"attention_bias": False, "use_sliding_window": False, "hidden_act": "silu"}
    return decoder.read_settings(config, only=only, rope_types=["default"], qk_layernorm=True)


def entries(config: dict[str, Any]) -> list[Entry]:
    """The map of a Qwen3 model."""
    return decoder.entries(settings(config))
