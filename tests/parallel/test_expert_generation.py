"""A generator with experts has the trainer's weights, and returns the experts that it chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import join_experts, write_model
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


@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize("model", ["qwen3-moe", "olmoe"])
def test_experts_that_an_evaluation_reads_from_files_are_those_of_transformers(
    model: str, is_joined: bool, tmp_path: Path
) -> None:
    """In fp32 log-probs have a mean difference below 1e-5, and tokens go to the same experts. The files have a tensor
    for each expert, or for all experts of a layer."""
    write_model(model, tmp_path / "model")
    if is_joined:
        join_experts(tmp_path / "model")
    run_ranks(Path(__file__).with_name("expert_files_worker.py"), 1, tmp_path / "model")
