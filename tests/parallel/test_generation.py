"""The generator: its weights are the trainer's, and a response depends on its request alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.models import write_model
from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("generation_worker.py")


@pytest.mark.parametrize("model", ["demo", "llama-3"])
def test_synced_weights_are_the_trainers_and_requests_are_independent(
    model: str, recipe: Path, demo_model: Path, tmp_path: Path
) -> None:
    """Two pipeline stages feed two replicas. vLLM loads the exported directory and holds its tensors bit for bit after
    the cast to bf16; so it does after a sync, and a sync of other weights is noticed. The same requests get the same
    responses in another order, on another replica and alone, and the trainer's random state is left as it was."""
    hf_path = demo_model
    if model != "demo":
        hf_path = tmp_path / "model"
        write_model(model, hf_path)
        for file in demo_model.glob("tokenizer*"):
            shutil.copy(file, hf_path)
    run_ranks(WORKER, 2, recipe, tmp_path / "export", f"model.hf_path={hf_path}")
