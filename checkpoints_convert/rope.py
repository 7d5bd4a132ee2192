"""Rotary position embeddings: what a Hugging Face config says of them, and the frequencies that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from checkpoints_convert.errors import ConversionError


@dataclass(frozen=True)
class Rope:
    """RoPE (arXiv 2104.09864) with Llama 3's scaling (arXiv 2407.21783, rope type `llama3`) where `factor` is above 1.

    Wavelengths above original_context / low_frequency_factor are stretched by `factor`, those below original_context /
    high_frequency_factor are kept, and between them the frequency is interpolated.
    """

    base: float
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192

    def inverse_frequencies(self, dimension: int) -> Tensor:
        """Radians a position, [dimension / 2] fp32."""
        plain = 1.0 / self.base ** (torch.arange(0, dimension, 2, dtype=torch.float32) / dimension)
        waves = self.original_context * plain / (2 * math.pi)
        width = self.high_frequency_factor - self.low_frequency_factor
        kept = ((waves - self.low_frequency_factor) / width).clamp(0, 1)
        return plain * (kept + (1 - kept) / self.factor)


def read_rope(config: dict[str, Any], types: Sequence[str]) -> Rope:
    """RoPE of a config.json, new (`rope_parameters`) or old (`rope_theta`, `rope_scaling`).

    Raises ConversionError for a rope type that is not among the family's `types`.
    """
    given = {"rope_theta": config.get("rope_theta", 10000.0)}
    given |= config.get("rope_parameters") or {}
    given |= config.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in types:
        raise ConversionError(f"config.json: rope_type={kind!r} is not supported for {config['model_type']}")
    if kind == "default":
        return Rope(given["rope_theta"])
    return Rope(
        given["rope_theta"],
        given["factor"],
        given["low_freq_factor"],
        given["high_freq_factor"],
        given["original_max_position_embeddings"],
    )
