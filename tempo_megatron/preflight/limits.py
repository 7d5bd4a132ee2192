"""Settings of `preflight` that cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from tempo_megatron.config import PreflightConfig


def problems(config: PreflightConfig) -> Iterator[str]:
    """What is wrong with the settings, one line each."""
    for name in ("presence_seconds", "time_limit_seconds"):
        if (seconds := getattr(config, name)) < 1:
            yield f"preflight.{name}: at least 1, got {seconds}"
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and value < 0:
            yield f"preflight.{field.name}: at least 0, got {value}"
