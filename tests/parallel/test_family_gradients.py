"""Losses and gradients of every layout on packed sequences, against single sequences in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("family_worker.py")
FAMILIES = ("qwen3", "olmo-3")
PACKED = "policy.micro_batch_tokens=2048"
ALONE = "policy.micro_batch_tokens=1"
"""A budget below the length of every sequence, so that each is packed alone."""
TP2 = "parallel.tensor_model_parallel_size=2"
SHARED = "shared kernels"
"""The policy's layers for `numerics: exact`, which OLMo 3 has not."""
LAYOUTS = {
    "alone": (1, (ALONE,)),
    "packed": (1, (PACKED,)),
    "recompute mlp": (1, (PACKED, "model.recompute=mlp")),
    SHARED: (1, (PACKED, "numerics=exact")),
    "recompute full": (1, (PACKED, "model.recompute=full")),
    "TP2": (2, (PACKED, TP2)),
    "TP2 with SP": (2, (PACKED, TP2, "parallel.sequence_parallel=true")),
    "PP2": (2, (PACKED, "parallel.pipeline_model_parallel_size=2")),
    "CP2": (2, (PACKED, "parallel.context_parallel_size=2")),
    "DP2": (2, (PACKED,)),
}
"""Name -> ranks, settings."""

Gradients = dict[str, dict[str, dict[str, Tensor]]]
"""Case -> role -> Hugging Face name, or `loss` [rows] -> tensor."""


def write_models(directory: Path, **shape: int) -> None:
    heads = shape["num_attention_heads"]
    for name in FAMILIES:
        groups = heads if name == "olmo-3" else heads // 2
        config = {"num_key_value_heads": groups, "vocab_size": 1000, "max_position_embeddings": 2048, **shape}
        write_model(name, directory / name, dtype=torch.bfloat16, **config)


def compute(models: Path, ranks: int, cases: dict[str, tuple[str, tuple[str, ...]]], precision: str) -> Gradients:
    """Runs the worker for each case, a family and settings; returns its results."""
    arguments = {
        case: (family, (f"model.precision={precision}", *settings)) for case, (family, settings) in cases.items()
    }
    run_ranks(WORKER, ranks, models, models / f"{ranks}.pt", json.dumps(arguments))
    loaded: Gradients = torch.load(models / f"{ranks}.pt")
    return loaded


def every_layout(ranks: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {
        f"{family} {name}": (family, settings)
        for family in FAMILIES
        for name, (layout_ranks, settings) in LAYOUTS.items()
        if layout_ranks == ranks and (name != SHARED or family == "qwen3")
    }


def distances(actual: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """Returns relative distances (norm of the difference / norm) of losses, gradients and the worst tensor."""
    shares = {}
    for role, reference in expected.items():
        names = [name for name in reference if name != "loss"]
        errors = {name: actual[role][name] - reference[name] for name in names}
        assert all(reference[name].norm() > 0 for name in names)
        shares[f"{role} loss"] = float((actual[role]["loss"] - reference["loss"]).norm() / reference["loss"].norm())
        whole = torch.cat([reference[name].flatten() for name in names])
        shares[f"{role} gradient"] = float(torch.cat([e.flatten() for e in errors.values()]).norm() / whole.norm())
        shares[f"{role} worst"] = max(float(error.norm() / reference[name].norm()) for name, error in errors.items())
    return shares


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    models = tmp_path_factory.mktemp("models")
    write_models(models, hidden_size=128, intermediate_size=256, num_attention_heads=4, head_dim=32)
    return compute(models, 1, every_layout(1), "fp32") | compute(models, 2, every_layout(2), "fp32")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (family, name)
        for family in FAMILIES
        for name in LAYOUTS
        if name != "alone" and (name, family) != (SHARED, "olmo-3")
    ],
)
def test_every_layout_has_the_losses_and_gradients_of_single_sequences(
    family: str, name: str, results: Gradients
) -> None:
    """In fp32, with lengths from 5 to 700 tokens in one micro-batch, losses, the whole gradient and each tensor's
    gradient agree up to rounding. OLMo 3 has windows, norms after sub-layers, and norms over all heads that
    are split over TP ranks."""
    shares = distances(results[f"{family} {name}"], results[f"{family} alone"])
    assert max(shares.values()) < 2e-5, shares
