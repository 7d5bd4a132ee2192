"""Sleep, wake and sync of a generator on GPUs; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parallel.launcher import run_ranks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WORKER = Path(__file__).with_name("generation_worker.py")


@pytest.mark.parametrize(
    ("ranks", "precision", "eager"), [(1, "same", False), (1, "fp8", False), (2, "same", True), (2, "fp8", True)]
)
def test_what_slept_comes_back_with_the_trainers_weights(ranks: int, precision: str, eager: bool, recipe: Path) -> None:
    """A sleeping generator keeps nothing, and every tensor that is not quantized is compared after each load. Responses
    stay the same, also without a sync after the sleep. A sync of other weights changes them, under CUDA graphs too."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    run_ranks(
        WORKER,
        ranks,
        recipe,
        f"parallel.processes_per_node={ranks}",
        f"parallel.tensor_model_parallel_size={ranks}",
        "model.precision=bf16",
        f"generation.precision={precision}",
        f"generation.enforce_eager={eager}",
        "generation.gpu_memory_utilization=0.2",
    )
