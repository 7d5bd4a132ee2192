"""The generator has the trainer's weights, and a response depends on its request alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("generation_worker.py")


@pytest.mark.parametrize(
    ("model", "dtype"), [("demo", "bfloat16"), ("llama-3", "float32"), ("olmo-3", "float32"), ("olmo-2", "float32")]
)
def test_synced_weights_are_the_trainers_and_requests_are_independent(
    model: str, dtype: str, recipe: Path, demo_model: Path, tmp_path: Path
) -> None:
    """Two pipeline stages send weights to two replicas. vLLM starts from random weights in the shapes of the exported
    directory and loads the trainer's weights at the first request. They are equal bit for bit after the cast, after a
    sync too, and a sync of other weights is detected.

    In fp32 its log-probs of sequences longer than OLMo 3's window equal Megatron's, with a mean difference below 1e-5
    (the end-to-end run compares Qwen3's). OLMo 2 runs in vLLM's transformers backend. The same requests get the same
    responses in another order, longest expected first, on another replica and alone, and the trainer's random state
    does not change. Generation stops on request while engine steps take a second. Responses pause once enough groups
    are whole, and continue with the tokens of an uninterrupted response."""
    hf_path = demo_model
    if model != "demo":
        hf_path = tmp_path / "model"
        write_model(model, hf_path)
        for file in demo_model.glob("tokenizer*"):
            shutil.copy(file, hf_path)
    run_ranks(WORKER, 2, recipe, tmp_path / "export", dtype, f"model.hf_path={hf_path}")
