"""Rotary position embeddings (RoPE): their settings in a Hugging Face config, and their frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.conversion.errors import ConversionError

_FIELDS = {
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "fast_rotations",
    "beta_slow": "slow_rotations",
    "rope_theta": "base",
}
"""Hugging Face's name of a setting -> the name of the field here, where they differ."""
_IGNORED_SETTINGS = {"rope_type": None, "type": None, "partial_rotary_factor": 1.0, "truncate": True}
"""Settings without a field: those that other code reads (None), and those with one supported value."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Plain RoPE (arXiv 2104.09864)."""

    base: float

    def inverse_frequencies(self, dimension: int) -> Tensor:
        """Return the rotation angles in radians per position, [dimension / 2] fp32."""
        return 1.0 / self.base ** (torch.arange(0, dimension, 2, dtype=torch.float32) / dimension)

    @property
    def attention_scale(self) -> float:
        """The factor on the softmax's scale. Queries' and keys' cosines and sines each have its square root."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Llama 3's scaling (arXiv 2407.21783, rope type `llama3`).

    Wavelengths above original_context / low_frequency_factor are stretched by `factor`. Wavelengths below
    original_context / high_frequency_factor are kept. Frequencies between the two are interpolated.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int

    def inverse_frequencies(self, dimension: int) -> Tensor:
        unscaled = super().inverse_frequencies(dimension)
        rotations = self.original_context * unscaled / (2 * math.pi)
        width = self.high_frequency_factor - self.low_frequency_factor
        unscaled_weight = ((rotations - self.low_frequency_factor) / width).clamp(0, 1)
        return unscaled * (unscaled_weight + (1 - unscaled_weight) / self.factor)


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN (arXiv 2309.00071, rope type `yarn`).

    Dimensions that rotate more than `fast_rotations` times over the original context are kept. Dimensions that rotate
    fewer than `slow_rotations` times are stretched by `factor`. A linear ramp connects the two.
    """

    factor: float
    original_context: int
    fast_rotations: float = 32.0
    slow_rotations: float = 1.0
    attention_factor: float | None = None

    def inverse_frequencies(self, dimension: int) -> Tensor:
        def dimension_with(rotations: float) -> float:
            return dimension * math.log(self.original_context / (rotations * 2 * math.pi)) / (2 * math.log(self.base))

        first = max(math.floor(dimension_with(self.fast_rotations)), 0)
        last = min(math.ceil(dimension_with(self.slow_rotations)), dimension - 1)
        ramp = ((torch.arange(dimension // 2, dtype=torch.float32) - first) / max(last - first, 1e-3)).clamp(0, 1)
        return super().inverse_frequencies(dimension) * (1 - ramp + ramp / self.factor)

    @property
    def attention_scale(self) -> float:
        """The square of `attention_factor`, or of its default."""
        factor = self.default_attention_factor if self.attention_factor is None else self.attention_factor
        return factor**2

    @property
    def default_attention_factor(self) -> float:
        """YaRN's own value, 0.1 ln(factor) + 1."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


_ROPE_CLASSES: dict[str, type[Rope]] = {"default": Rope, "llama3": Llama3Rope, "yarn": YarnRope}


def is_positive(value: Any) -> bool:
    """Return whether a value of a config.json is a finite number above 0."""
    return type(value) in (int, float) and 0 < value < math.inf


def read_rope(settings: Any, rope_types: Sequence[str]) -> Rope:
    """Return the RoPE of one layer type from transformers' settings, such as `rope_type` and `rope_theta`.

    Raises ConversionError for settings that are no JSON object; for a type that is not in `rope_types`, the types of
    the family; for an unknown or missing setting of the type; and for a value that is no number above 0.
    """
    if not isinstance(settings, Mapping):
        raise ConversionError(f"{settings!r} is no object of settings")
    rope_type = settings.get("rope_type") or "default"
    if rope_type not in rope_types:
        raise ConversionError(f"rope_type={rope_type!r} is not supported; supported: {', '.join(rope_types)}")
    rope_class = _ROPE_CLASSES[rope_type]
    known = {field.name: field for field in fields(rope_class)}
    values = {}
    for name, value in settings.items():
        field_name = _FIELDS.get(name, name)
        if field_name not in known:
            ignored = name in _IGNORED_SETTINGS and _IGNORED_SETTINGS[name] in (None, value)
            if rope_type != "default" and not ignored:
                raise ConversionError(f"{name}={value!r} is not supported for rope_type={rope_type!r}")
        elif is_positive(value):
            values[field_name] = value
        elif value is not None:
            raise ConversionError(f"{name}={value!r} is no number above 0")
    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConversionError(f"partial_rotary_factor={settings['partial_rotary_factor']!r} is not supported")
    missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
    if missing:
        hf_names = {field_name: name for name, field_name in _FIELDS.items()}
        names = ", ".join(hf_names.get(name, name) for name in missing)
        raise ConversionError(f"rope_type={rope_type!r} needs {names}")
    return rope_class(**values)
