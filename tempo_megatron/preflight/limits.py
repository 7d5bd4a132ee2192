"""Settings of `preflight` that cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from tempo_megatron.config import PreflightConfig


def problems(config: PreflightConfig) -> Iterator[str]:
    """What is wrong with the settings, one line each."""
    if config.time_limit_seconds < 1:
        yield f"preflight.time_limit_seconds: at least 1, got {config.time_limit_seconds}"
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and value < 0:
            yield f"preflight.{field.name}: at least 0, got {value}"
