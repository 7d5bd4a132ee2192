"""A generator with experts has the trainer's weights, and returns the experts that it chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("expert_generation_worker.py")


@pytest.mark.parametrize("model", ["qwen3-moe", "olmoe"])
def test_synced_experts_are_the_trainers_and_routes_are_returned(model: str, tmp_path: Path) -> None:
    """vLLM starts from random weights and gets those of a Megatron model, then others. After both syncs its log-probs
    are those of transformers with a mean difference below 1e-5, in fp32, and it returns the experts that transformers
    chooses, of prompts in the prefix cache too. A response depends on its request alone. One changed element of one
    expert changes the checksum of that projection."""
    write_model(model, tmp_path / "model")
    run_ranks(WORKER, 1, tmp_path / "model")
