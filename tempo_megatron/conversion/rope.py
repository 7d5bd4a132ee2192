"""Rotary position embeddings: what a Hugging Face config says of them, and the frequencies that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tempo_megatron.conversion.errors import ConversionError

_SPELLINGS = {
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "fast_rotations",
    "beta_slow": "slow_rotations",
    "rope_theta": "base",
}
"""Hugging Face's name of a setting -> the field here"""
_HARMLESS = {"rope_type": None, "type": None, "partial_rotary_factor": 1.0, "truncate": True}
"""Settings that are read elsewhere (None), or have one value that is computed here."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Plain RoPE (arXiv 2104.09864)."""

    base: float

    def inverse_frequencies(self, dimension: int) -> Tensor:
        """Radians a position, [dimension / 2] fp32."""
        return 1.0 / self.base ** (torch.arange(0, dimension, 2, dtype=torch.float32) / dimension)

    @property
    def attention_scale(self) -> float:
        """What the softmax's scale is multiplied by: the cosines and sines of queries and of keys have its root."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Llama 3's scaling (arXiv 2407.21783, rope type `llama3`).

    Wavelengths above original_context / low_frequency_factor are stretched by `factor`, those below original_context /
    high_frequency_factor are kept, and between them the frequency is interpolated.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int

    def inverse_frequencies(self, dimension: int) -> Tensor:
        plain = super().inverse_frequencies(dimension)
        waves = self.original_context * plain / (2 * math.pi)
        width = self.high_frequency_factor - self.low_frequency_factor
        kept = ((waves - self.low_frequency_factor) / width).clamp(0, 1)
        return plain * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN (arXiv 2309.00071, rope type `yarn`).

    Dimensions that turn more than `fast_rotations` times over the original context are kept, those that turn less than
    `slow_rotations` times are stretched by `factor`, with a linear ramp over the dimensions between them.
    """

    factor: float
    original_context: int
    fast_rotations: float = 32.0
    slow_rotations: float = 1.0
    attention_factor: float | None = None

    def inverse_frequencies(self, dimension: int) -> Tensor:
        def dimension_that_turns(rotations: float) -> float:
            return dimension * math.log(self.original_context / (rotations * 2 * math.pi)) / (2 * math.log(self.base))

        first = max(math.floor(dimension_that_turns(self.fast_rotations)), 0)
        last = min(math.ceil(dimension_that_turns(self.slow_rotations)), dimension - 1)
        ramp = ((torch.arange(dimension // 2, dtype=torch.float32) - first) / max(last - first, 1e-3)).clamp(0, 1)
        return super().inverse_frequencies(dimension) * (1 - ramp + ramp / self.factor)

    @property
    def attention_scale(self) -> float:
        """The square of `attention_factor`, or of its default."""
        factor = self.default_attention_factor if self.attention_factor is None else self.attention_factor
        return factor**2

    @property
    def default_attention_factor(self) -> float:
        """0.1 ln(factor) + 1"""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


_KINDS: dict[str, type[Rope]] = {"default": Rope, "llama3": Llama3Rope, "yarn": YarnRope}


def is_positive(value: Any) -> bool:
    """Whether a value of a config.json is a finite number above 0."""
    return type(value) in (int, float) and 0 < value < math.inf


def read_rope(given: Any, types: Sequence[str]) -> Rope:
    """RoPE of the settings that transformers keeps for one kind of layer, `rope_type` and `rope_theta` among them.

    Raises ConversionError for settings that are no JSON object, for a rope type that is not among the family's `types`,
    for a setting of it that is not known here, that is missing or that is no number above 0.
    """
    if not isinstance(given, Mapping):
        raise ConversionError(f"{given!r} is no object of settings")
    kind = given.get("rope_type") or "default"
    if kind not in types:
        raise ConversionError(f"rope_type={kind!r} is not supported; supported: {', '.join(types)}")
    made = _KINDS[kind]
    known = {field.name: field for field in fields(made)}
    values = {}
    for name, value in given.items():
        spelled = _SPELLINGS.get(name, name)
        if spelled not in known:
            if kind != "default" and (name not in _HARMLESS or _HARMLESS[name] not in (None, value)):
                raise ConversionError(f"{name}={value!r} is not supported for rope_type={kind!r}")
        elif is_positive(value):
            values[spelled] = value
        elif value is not None:
            raise ConversionError(f"{name}={value!r} is no number above 0")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConversionError(f"partial_rotary_factor={given['partial_rotary_factor']!r} is not supported")
    spellings = {field: name for name, field in _SPELLINGS.items()}
    required = [name for name, field in known.items() if field.default is MISSING and name not in values]
    if required:
        names = ", ".join(spellings.get(name, name) for name in required)
        raise ConversionError(f"rope_type={kind!r} needs {names}")
    return made(**values)
