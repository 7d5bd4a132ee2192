"""How unevenly updates used the experts of policy and critic."""

from __future__ import annotations

from collections.abc import Mapping

from tempo_megatron.megatron.trainer import Trainer


def expert_shares(trainers: Mapping[str, Trainer]) -> dict[str, float]:
    """Return how unevenly the models' experts were used since the last call; empty for dense models. Collective."""
    shares = {name: trainer.expert_load.take_shares() for name, trainer in trainers.items()}
    return {f"{name}/{figure}": share for name, figures in shares.items() for figure, share in figures.items()}


def reset_expert_shares(trainers: Mapping[str, Trainer]) -> None:
    """Forget which experts the models used up to now, as in a warm start."""
    for trainer in trainers.values():
        trainer.expert_load.reset()
