"""Losses are sums over one global count, so the division of a batch into micro-batches changes no gradient."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tempo_megatron.config import load_config
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("gradient_worker.py")
EVERY_TERM = (
    "parallel.tensor_model_parallel_size=1",
    "policy.kl_coefficient=0.1",
    "policy.entropy_coefficient=0.01",
    "policy.dual_clip=3.0",
    "critic.value_clip=0.2",
)

CORRECTION = (
    "policy/rejected_tokens",
    "policy/rejected_sequences",
    "policy/importance_weight_mean",
    "policy/token_ratio_max",
)


def computed(recipe: Path, ranks: int, *sizes: int) -> dict[int, Any]:
    """Returns the gradients of every step by model, and the metrics of every iteration, by token budget."""
    out = recipe.with_suffix(".pt")
    shutil.rmtree(load_config(recipe).run_dir, ignore_errors=True)
    run_ranks(WORKER, ranks, recipe, out, ",".join(map(str, sizes)), *EVERY_TERM)
    results: dict[int, Any] = torch.load(out)
    return results


def test_micro_batches_and_data_parallel_ranks_change_no_gradient(recipe: Path) -> None:
    """Gradients of every step of both models agree within 1e-5 of their norm, for GSPO and PPO with every term of the
    loss and several corrections of the rollouts. Budgets range from one sequence to a hundred tokens. Rows differ in
    length, and their number is no multiple of the ranks, so a mean of means would fail. Metrics of the corrections
    agree too."""
    alone = computed(recipe, 1, 1, 100)
    expected = alone[1]
    capped, of_tokens, of_sequences = [[row[name] for name in CORRECTION] for row in expected["metrics"]]
    assert capped[:2] == [0, 0] and capped[3] > 1.5
    assert 0 < of_tokens[0] < 1 and of_tokens[3] > 1.7
    assert 0 < of_sequences[1] < 1 and 0 < of_sequences[2] < 1
    for actual in (alone[100], computed(recipe, 2, 40)[40]):
        for name, steps in expected["gradients"].items():
            assert len(steps) == len(actual["gradients"][name]) == 6
            for gradient, reference in zip(actual["gradients"][name], steps, strict=True):
                assert reference.norm() > 0
                assert (gradient - reference).norm() / reference.norm() < 1e-5, name
        for row, expected_row in zip(actual["metrics"], expected["metrics"], strict=True):
            for name in CORRECTION:
                assert row[name] == pytest.approx(expected_row[name], rel=1e-5), name
