"""Learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import replace

from tempo_megatron.config import CriticConfig, LearningRateSchedule, OptimizerConfig, PolicyConfig, ScheduleUnit


def schedule_in_optimizer_steps(learner: PolicyConfig | CriticConfig) -> OptimizerConfig:
    """Returns the optimizer settings of a policy or critic, with the schedule converted to optimizer steps.

    A schedule in batches counts all optimizer steps of one E-step or M-step as one: `mini_batches * epochs`.
    """
    settings = learner.optimizer
    steps = learner.mini_batches * learner.epochs if settings.schedule_unit is ScheduleUnit.batch else 1
    return replace(
        settings,
        schedule_unit=ScheduleUnit.optimizer_step,
        warmup_steps=warmup_length(settings) * steps,
        warmup_share=0.0,
        decay_steps=settings.decay_steps * steps,
    )


def warmup_length(settings: OptimizerConfig) -> int:
    """Returns the number of schedule units over which the learning rate rises."""
    return settings.warmup_steps or math.floor(settings.warmup_share * settings.decay_steps)


def learning_rate(settings: OptimizerConfig, step: int) -> float:
    """Returns the learning rate of optimizer step `step`, counted from 0. The schedule must count optimizer steps.

    During warm-up it is learning_rate (step + 1) / warmup. Afterwards it is constant, or falls linearly or along half a
    cosine from learning_rate to minimum_learning_rate at `decay_steps`.
    """
    warmup = warmup_length(settings)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule is LearningRateSchedule.constant:
        return settings.learning_rate
    progress = min(1.0, (step - warmup) / (settings.decay_steps - warmup))
    factor = 1 - progress
    if settings.schedule is LearningRateSchedule.cosine:
        factor = (1 + math.cos(math.pi * progress)) / 2
    return settings.minimum_learning_rate + factor * (settings.learning_rate - settings.minimum_learning_rate)
