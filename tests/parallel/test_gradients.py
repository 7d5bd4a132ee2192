"""Losses are sums over one global count, so the division of a batch into micro-batches changes no gradient."""

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
    """Returns the gradients of every step by token budget and model."""
    out = recipe.with_suffix(".pt")
    shutil.rmtree(load_config(recipe).run_dir, ignore_errors=True)
    run_ranks(WORKER, ranks, recipe, out, ",".join(map(str, sizes)), *EVERY_TERM)
    gradients_by_budget: Gradients = torch.load(out)
    return gradients_by_budget


def test_micro_batches_and_data_parallel_ranks_change_no_gradient(recipe: Path) -> None:
    """Gradients of every step of both models agree within 1e-5 of their norm, for GSPO and PPO with every term of the
    loss. Budgets range from one sequence to a hundred tokens. Rows differ in length, and their number is no multiple of
    the ranks, so a mean of means would fail."""
    alone = gradients(recipe, 1, 1, 100)
    expected = alone[1]
    for actual in (alone[100], gradients(recipe, 2, 40)[40]):
        for name, steps in expected.items():
            assert len(steps) == len(actual[name]) == 4
            for gradient, reference in zip(actual[name], steps, strict=True):
                assert reference.norm() > 0
                assert (gradient - reference).norm() / reference.norm() < 1e-5, name
