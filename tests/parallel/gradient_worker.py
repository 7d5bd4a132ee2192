"""A rank of test_gradients: gradients of policy and critic on the same rollouts under several token budgets.

usage: gradient_worker.py RECIPE OUT MICRO_BATCH_TOKENS,... [key=value ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tempo_megatron.config import AverageOver, PolicyLoss, load_config
from tempo_megatron.megatron.trainer import Trainer
from tempo_megatron.training.loop import iterate
from tests.runs import build_recorded


def whole_gradient(trainer: Trainer) -> Tensor:
    """Returns all gradients, unclipped, from the shards that data-parallel ranks hold after reduction."""
    parts = []
    for buffer in trainer.model.buffers:
        for bucket in buffer.buckets:
            size, rank = trainer.topology.data_size, trainer.topology.data_rank
            shard = bucket.grad_data.chunk(size)[rank].clone()
            shards = [torch.empty_like(shard) for _ in range(size)]
            dist.all_gather(shards, shard, group=trainer.topology.data_group)
            parts.append(torch.cat(shards)[: bucket.numel_unpadded])
    return torch.cat(parts)


def record_gradients(trainer: Trainer, into: list[Tensor]) -> None:
    """Appends each step's gradient to `into` instead of changing the weights."""

    def step() -> tuple[bool, float, int]:
        into.append(whole_gradient(trainer))
        return True, 1.0, 0

    trainer.optimizer.step = step


def main(recipe: str, out: str, sizes: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    run = build_recorded(load_config(recipe, overrides))
    gradients: dict[str, list[Tensor]] = {name: [] for name in run.models.trainers}
    for name, trainer in run.models.trainers.items():
        record_gradients(trainer, gradients[name])
    run.state.iteration = 1
    gradients_by_budget: dict[int, dict[str, list[Tensor]]] = {}
    for size in map(int, sizes.split(",")):
        run.data.labeled.position = run.data.unlabeled.position = 0
        for trainer in run.models.trainers.values():
            trainer.rule = replace(trainer.rule, budget=size)
        for loss, average in ((PolicyLoss.gspo, AverageOver.sequences), (PolicyLoss.ppo, AverageOver.tokens)):
            run.config.policy.loss, run.config.policy.average_over = loss, average
            iterate(run)
        gradients_by_budget[size] = {name: list(steps) for name, steps in gradients.items()}
        for steps in gradients.values():
            steps.clear()
    if run.console.is_first:
        torch.save(gradients_by_budget, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
