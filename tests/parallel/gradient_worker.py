"""A rank of test_gradients: gradients of policy and critic, and metrics, on the same rollouts under several budgets.

usage: gradient_worker.py RECIPE OUT MICRO_BATCH_TOKENS,... [key=value ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import (
    AverageOver,
    ImportanceWeight,
    PolicyLoss,
    Rejection,
    RolloutCorrectionConfig,
    load_config,
)
from tempo_megatron.megatron.trainer import Trainer
from tempo_megatron.training.loop import iterate
from tests.runs import Disagreeing, build_recorded

LOSSES = (
    (
        PolicyLoss.gspo,
        AverageOver.sequences,
        RolloutCorrectionConfig(ImportanceWeight.token, cap=1.5),
    ),
    (
        PolicyLoss.ppo,
        AverageOver.tokens,
        RolloutCorrectionConfig(ImportanceWeight.token, 0.0, Rejection.token, reject_below=0.6, reject_above=1.7),
    ),
    (
        PolicyLoss.gspo,
        AverageOver.constant,
        RolloutCorrectionConfig(ImportanceWeight.geometric_mean, 1.1, Rejection.sequence, reject_below=0.5),
    ),
)
"""Each loss with another average and another correction of the rollouts."""


def whole_gradient(trainer: Trainer) -> Tensor:
    """Returns all gradients, unclipped, from the shards that data-parallel ranks hold after reduction."""
    parts = []
    (chunk,) = trainer.wrapped_chunks
    for buffer in chunk.buffers:
        for bucket in buffer.buckets:
            size, rank = trainer.topology.data_size, trainer.topology.data_rank
            shard = bucket.grad_data.chunk(size)[rank].clone()
            shards = [torch.empty_like(shard) for _ in range(size)]
            dist.all_gather(shards, shard, group=trainer.topology.data_group)
            parts.append(torch.cat(shards)[: bucket.numel_unpadded])
    return torch.cat(parts)


def record_gradients(trainer: Trainer, into: list[Tensor]) -> None:
    """Appends each step's gradient to `into` instead of changing the weights."""

    trainer._apply_gradients = lambda norm: into.append(whole_gradient(trainer))


def main(recipe: str, out: str, sizes: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    run = build_recorded(load_config(recipe, overrides), Disagreeing())
    gradients: dict[str, list[Tensor]] = {name: [] for name in run.models.trainers}
    for name, trainer in run.models.trainers.items():
        record_gradients(trainer, gradients[name])
    run.state.iteration = 1
    results: dict[int, dict[str, Any]] = {}
    for size in map(int, sizes.split(",")):
        run.data.labeled.position = run.data.unlabeled.position = 0
        for trainer in run.models.trainers.values():
            trainer.rule = replace(trainer.rule, budget=size)
        metrics = []
        for loss, average, correction in LOSSES:
            policy = run.config.policy
            policy.loss, policy.average_over, policy.rollout_correction = loss, average, correction
            metrics.append(iterate(run))
        results[size] = {"gradients": {name: list(steps) for name, steps in gradients.items()}, "metrics": metrics}
        for steps in gradients.values():
            steps.clear()
    if run.console.is_first:
        torch.save(results, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
