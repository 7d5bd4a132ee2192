"""Models that are offloaded to pinned host memory, in bf16 with fp32 master weights, on one GPU; skipped without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parallel.launcher import run_ranks
from tests.parallel.test_residency import SETTINGS, WORKER

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("fp8", ["none", "tensorwise"])
def test_offloading_on_a_gpu_changes_nothing_and_leaves_nothing(
    fp8: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, master weights, Adam's moments and metrics equal those of a run that keeps its models, bit for bit.

    Attention is deterministic here. When the generator works, the GPU holds no byte of a model, nor a copy of a weight
    in FP8.
    """
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    settings = {**SETTINGS, "model.precision": "bf16", "model.fp8": fp8}
    run_ranks(WORKER, 1, recipe, tmp_path / "report.pt", *(f"{key}={value}" for key, value in settings.items()))
    comparison = torch.load(tmp_path / "report.pt")
    assert comparison["same_state"]
    assert comparison["metrics_differ"] == []
    assert min(comparison["kept_bytes"]) > 0
    copies = comparison["eight_bit_bytes"]
    assert set(copies["generating"]) == {0}
    assert (max(copies["syncing"]) > 0) == (
        fp8 != "none"
    )  # the policy's, which has just learned: the measure sees them
    assert set(comparison["offloaded_bytes"]) == set(comparison["sync_bytes"]) == {0}
    copied, size = comparison["read_only_bytes"]
    assert copied == size > 0
