"""Step sizes over a run."""

from __future__ import annotations

import math
from dataclasses import replace

from tempo_megatron.config import CriticConfig, LearningRateSchedule, OptimizerConfig, PolicyConfig, ScheduleUnit


def by_optimizer_steps(learner: PolicyConfig | CriticConfig) -> OptimizerConfig:
    """The learner's optimizer settings with a schedule that counts optimizer steps, whichever unit they are given in.

    A batch is all optimizer steps of one E-step or M-step: `mini_batches * epochs`.
    """
    settings = learner.optimizer
    steps = learner.mini_batches * learner.epochs if settings.schedule_unit is ScheduleUnit.batch else 1
    return replace(
        settings,
        schedule_unit=ScheduleUnit.optimizer_step,
        warmup_steps=warmup(settings) * steps,
        warmup_share=0.0,
        decay_steps=settings.decay_steps * steps,
    )


def warmup(settings: OptimizerConfig) -> int:
    """Units of the schedule over which the step size rises."""
    return settings.warmup_steps or math.floor(settings.warmup_share * settings.decay_steps)


def learning_rate(settings: OptimizerConfig, step: int) -> float:
    """The step size of optimizer step `step`, counted from 0, of a schedule that counts optimizer steps.

    Warm-up: learning_rate (step + 1) / warmup. Then constant, or from learning_rate to minimum_learning_rate at
    `decay_steps`, in a line or in half a cosine.
    """
    rising = warmup(settings)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    if settings.schedule is LearningRateSchedule.constant:
        return settings.learning_rate
    progress = min(1.0, (step - rising) / (settings.decay_steps - rising))
    left = 1 - progress
    if settings.schedule is LearningRateSchedule.cosine:
        left = (1 + math.cos(math.pi * progress)) / 2
    return settings.minimum_learning_rate + left * (settings.learning_rate - settings.minimum_learning_rate)
