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
    """The policy's tokens have the same experts in both precisions. Loss and gradient norm lie within 5% of bf16's, the
    gradient within 40% of its length. The distance is not 0, which shows that FP8 was used.

    On an H200 losses differed by 2.0e-2 and 1.8e-2, norms by 1.5e-2 and 5.2e-3, gradients by 0.29 and 0.30, tensorwise
    and blockwise; dense models had 0.25. Rounding weighs more here than in training, likely because random advantages
    of both signs cancel: the mean cross-entropy of a model as wide, also with equal experts, had 0.076. The norm is the
    sharper bound: a lost part of the gradient makes it shorter.
    """
    shares = distances(gradients[recipe], gradients["none"])
    print(f"FP8 {recipe}: " + ", ".join(f"{quantity} {share:.1e}" for quantity, share in shares.items()))
    assert shares["policy loss"] < 0.05
    assert shares["policy norm"] < 0.05
    assert 1e-2 < shares["policy gradient"] < 0.4
