"""Checks of models with experts: their training settings, and what their generator ignores."""

from __future__ import annotations

from collections.abc import Iterator

from tempo_megatron.config import Config, CriticTraining, ReplayedRoutes
from tempo_megatron.conversion.mapping import BackboneSettings

_KEY = "policy.router_replay"


def expert_training_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each setting of training with experts that this run cannot have."""
    yield from _router_replay_problems(config, settings)
    for name, learning in (("policy", config.policy), ("critic", config.critic)):
        if learning.aux_loss_coefficient and not settings.experts:
            yield f"{name}.aux_loss_coefficient: needs a model with experts; this one has none"
    if config.critic.aux_loss_coefficient and config.critic.training is CriticTraining.none:
        yield "critic.aux_loss_coefficient: needs a critic; critic.training is none"


def generator_problems(settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each feature of a model with experts that vLLM ignores."""
    if settings.experts and settings.attention_bias:
        yield "attention_bias=True: vLLM ignores the bias of o_proj in models with experts"


def _router_replay_problems(config: Config, settings: BackboneSettings) -> Iterator[str]:
    """Yield a line for each reason why this run cannot replay routes."""
    replay = config.policy.router_replay
    if replay is ReplayedRoutes.none:
        return
    if not settings.experts:
        yield f"{_KEY}: needs a model with experts; this one has none"
    if replay is ReplayedRoutes.generator and config.loop.partial_rollouts:
        yield (
            f"{_KEY}: generator needs loop.partial_rollouts 0, got {config.loop.partial_rollouts}: checkpoints hold no "
            "routes of responses that are carried over; use old_log_probs"
        )
