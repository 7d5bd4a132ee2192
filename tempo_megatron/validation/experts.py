"""Checks what models with experts can do, and what `policy.router_replay` needs."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.config import Config, RolloutPrecision
from tempo_megatron.conversion.mapping import BackboneSettings

_REPLAY = "policy.router_replay"


def experts_setting_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each setting that does not go with the model's experts, or that needs experts."""
    if settings.experts and settings.attention_bias:
        yield "model.hf_path: attention_bias=True: vLLM ignores the bias of o_proj in models with experts"
    if settings.experts and config.generation.precision is RolloutPrecision.fp8:
        yield "generation.precision: fp8 is not supported for experts; use same"
    if not config.policy.router_replay:
        return
    if not settings.experts:
        yield f"{_REPLAY}: needs a model with experts; this one has none"
    if config.loop.partial_rollouts:
        yield (
            f"{_REPLAY}: needs loop.partial_rollouts 0, got {config.loop.partial_rollouts}: checkpoints hold no routes "
            "of responses that are carried over"
        )
