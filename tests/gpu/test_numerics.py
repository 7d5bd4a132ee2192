"""Exact numerics on GPUs: log-probs of generator and policy are equal to the last bit; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import write_model
from tests.parallel.launcher import run_ranks

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs an H100 or H200"
)
WORKER = Path(__file__).with_name("numerics_worker.py")
SHAPE = {
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("family", "ranks", "settings"),
    [
        ("qwen3", 1, ""),
        ("llama-3", 1, ""),
        ("qwen3", 1, "model.recompute=mlp"),
        ("qwen3", 1, "model.recompute=full"),
        ("qwen3", 2, ""),
        ("qwen3-tied", 2, "parallel.pipeline_model_parallel_size=2"),
        ("qwen3", 2, "parallel.tensor_model_parallel_size=2"),
        ("qwen3", 2, "parallel.tensor_model_parallel_size=2 parallel.sequence_parallel=true"),
    ],
)
def test_every_sampled_token_has_the_log_prob_that_the_policy_computes(
    family: str, ranks: int, settings: str, tmp_path: Path
) -> None:
    """As many of 256 responses run at once as the KV cache holds. They are preempted, their prompts are read in parts
    or come from the prefix cache, and some have 2,048 tokens. The same holds after an optimizer step, a sleep and a
    sync, and the step's first ratios are exactly 1. Without tensor parallelism two ranks are two replicas. Then the
    policy has two data-parallel ranks or two pipeline stages, each with a copy of the tied embedding."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    write_model(family, tmp_path, dtype=torch.bfloat16, **SHAPE)
    (tmp_path / "generation_config.json").unlink()  # Its end token would end responses early.
    print(run_ranks(WORKER, ranks, tmp_path, f"parallel.processes_per_node={ranks}", *settings.split()))


@pytest.mark.parametrize("swiglu", ["shared", "other"])
def test_the_first_difference_is_that_of_the_operation_that_differs(swiglu: str, tmp_path: Path) -> None:
    """Equal kernels have none. A SwiGLU that rounds once changes everything after it, and is named alone."""
    write_model("qwen3", tmp_path, dtype=torch.bfloat16, **SHAPE)
    print(run_ranks(Path(__file__).with_name("first_difference_worker.py"), 1, tmp_path, swiglu))
