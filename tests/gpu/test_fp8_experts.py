"""Experts in FP8 on a GPU; skipped without one."""

from __future__ import annotations

import pytest
import torch

from tests.models import write_model
from tests.parallel.test_family_gradients import PACKED, Gradients, compute, distances

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

MODEL = "qwen3-moe"
RECIPES = ("tensorwise", "blockwise")
REPLAY = "policy.router_replay=generator"
SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256, "num_attention_heads": 8}


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    models = tmp_path_factory.mktemp("models")
    more = {"num_key_value_heads": 4, "head_dim": 64, "vocab_size": 1000, "max_position_embeddings": 2048}
    write_model(MODEL, models / MODEL, dtype=torch.bfloat16, **SHAPE, **more)
    cases = {precision: (MODEL, (PACKED, REPLAY, f"model.fp8={precision}")) for precision in ("none", *RECIPES)}
    return compute(models, 1, cases, "bf16")


@pytest.mark.parametrize("recipe", RECIPES)
def test_experts_in_fp8_are_near_bf16(recipe: str, gradients: Gradients) -> None:
    """The policy's tokens have the same experts in both precisions. Its loss lies within 5% of bf16's and its gradient
    within 30% of its length, as in dense models. The distance is not 0, which shows that FP8 was used."""
    shares = distances(gradients[recipe], gradients["none"])
    print(f"FP8 {recipe}: " + ", ".join(f"{quantity} {share:.1e}" for quantity, share in shares.items()))
    assert shares["policy loss"] < 0.05
    assert 1e-2 < shares["policy gradient"] < 0.3
