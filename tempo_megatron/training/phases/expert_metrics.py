"""How evenly updates used the experts of policy and critic."""

from __future__ import annotations

from collections.abc import Mapping

from tempo_megatron.megatron.trainer import Trainer


def expert_metrics(trainers: Mapping[str, Trainer]) -> dict[str, float]:
    """Return how evenly the models' experts were used since the last call; empty for dense models. Collective."""
    metrics = {name: trainer.expert_load.take_metrics() for name, trainer in trainers.items()}
    return {f"{name}/{figure}": value for name, figures in metrics.items() for figure, value in figures.items()}


def reset_expert_load(trainers: Mapping[str, Trainer]) -> None:
    """Forget which experts the models used up to now, as in a warm start."""
    for trainer in trainers.values():
        trainer.expert_load.reset()
