"""Losses are sums over one global count: how a batch is cut up changes no gradient."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tempo_megatron.config import load_config
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("gradient_worker.py")
EVERY_TERM = (
    "parallel.tensor_model_parallel_size=1",
    "policy.kl_coefficient=0.1",
    "policy.entropy_coefficient=0.01",
    "policy.importance_cap=1.5",
    "policy.dual_clip=3.0",
    "critic.value_clip=0.2",
)


Gradients = dict[int, dict[str, list[torch.Tensor]]]


def gradients(recipe: Path, ranks: int, *sizes: int) -> Gradients:
    """By token budget and model, those of every step."""
    out = recipe.with_suffix(".pt")
    shutil.rmtree(load_config(recipe).run_dir, ignore_errors=True)
    run_ranks(WORKER, ranks, recipe, out, ",".join(map(str, sizes)), *EVERY_TERM)
    gradients_by_size: Gradients = torch.load(out)
    return gradients_by_size


def test_micro_batches_and_data_parallel_ranks_change_no_gradient(recipe: Path) -> None:
    """Every step of both models within 1e-5 of the gradient's length, for GSPO and PPO with every term of the loss.
    Budgets from a sequence to a hundred tokens; rows differ in length, and their number does not divide by the ranks:
    means of means would show."""
    of_one_rank = gradients(recipe, 1, 1, 100)
    expected = of_one_rank[1]
    for actual in (of_one_rank[100], gradients(recipe, 2, 40)[40]):
        for name, steps in expected.items():
            assert len(steps) == len(actual[name]) == 4
            for gradient, reference in zip(actual[name], steps, strict=True):
                assert reference.norm() > 0
                assert (gradient - reference).norm() / reference.norm() < 1e-5, name
