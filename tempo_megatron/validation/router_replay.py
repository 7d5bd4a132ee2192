"""Checks what `policy.router_replay` needs."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.config import Config
from tempo_megatron.conversion.mapping import BackboneSettings

_KEY = "policy.router_replay"


def router_replay_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each reason why this run cannot replay the generator's routes."""
    if not config.policy.router_replay:
        return
    if not settings.experts:
        yield f"{_KEY}: needs a model with experts; this one has none"
    if config.loop.partial_rollouts:
        yield (
            f"{_KEY}: needs loop.partial_rollouts 0, got {config.loop.partial_rollouts}: checkpoints hold no routes of "
            "responses that are carried over"
        )
