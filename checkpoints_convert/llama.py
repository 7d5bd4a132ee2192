"""Llama 3.x, RoPE scaling included, and models of its architecture such as SmolLM2."""

from __future__ import annotations

from typing import Any

from checkpoints_convert import decoder
from checkpoints_convert.mapping import BackboneSettings, Entry


def settings(config: dict[str, Any]) -> BackboneSettings:
    """The backbone that a Llama config.json describes. Raises ConversionError naming what it cannot map."""
    only = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "pretraining_tp": 1}
    return decoder.read_settings(config, only=only, rope_types=["default", "llama3"], qk_layernorm=False)


def entries(config: dict[str, Any]) -> list[Entry]:
    """The map of a Llama model."""
    return decoder.entries(settings(config))
