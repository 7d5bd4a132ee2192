"""Recomputation of activations by the calls that megatron-core makes under FP8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("fp8_recompute_worker.py")
LAYER, EXPERTS, MLP = "custom_forward", "custom_forward", "MLP"
EXPECTED = {
    "qwen3": {"none": [], "mlp": [MLP] * 4, "full": [LAYER] * 8},
    "qwen3-moe": {"none": [], "mlp": [EXPERTS, MLP, EXPERTS, EXPERTS], "full": [LAYER] * 8},
}
"""Model -> `model.recompute` -> what the backward pass recomputes. A Hugging Face layer has two layers here."""


@pytest.mark.parametrize("name", EXPECTED)
def test_recomputation_keeps_every_bit_of_loss_and_gradient(name: str, tmp_path: Path) -> None:
    """MLPs and experts are recomputed, and attention layers only in `full`. Protects a run with FP8 from its first
    pass, in which Transformer Engine refused to recompute the identity in an attention layer."""
    write_model(name, tmp_path / name, max_position_embeddings=2048)
    run_ranks(WORKER, 1, tmp_path, tmp_path / "results.pt", name)
    results = torch.load(tmp_path / "results.pt")
    kept, _ = results["none"]
    for kind, expected in EXPECTED[name].items():
        tensors, recomputed = results[kind]
        assert recomputed == expected, kind
        assert tensors.keys() == kept.keys()
        assert all(torch.equal(tensors[key], kept[key]) for key in kept), kind
