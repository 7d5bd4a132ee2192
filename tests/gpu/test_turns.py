"""Models that rest in pinned host memory, in bf16 with fp32 master weights, on one GPU; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parallel.launcher import run_ranks
from tests.parallel.test_turns import SETTINGS, WORKER

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("fp8", ["none", "tensorwise"])
def test_resting_on_a_gpu_changes_nothing_and_leaves_nothing(
    fp8: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, master weights, Adam's moments and metrics bit for bit those of a run whose models stay, with attention
    that is the same twice; no byte of any model on the GPU whenever the generator would work, copies of weights in
    FP8 included."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    settings = {**SETTINGS, "model.precision": "bf16", "model.fp8": fp8}
    run_ranks(WORKER, 1, recipe, tmp_path / "found.pt", *(f"{key}={value}" for key, value in settings.items()))
    comparison = torch.load(tmp_path / "found.pt")
    assert comparison["same_state"]
    assert comparison["metrics_differ"] == []
    assert min(comparison["stayed_bytes"]) > 0
    copies = comparison["eight_bit_bytes"]
    assert set(copies["generating"]) == {0}
    assert (max(copies["syncing"]) > 0) == (
        fp8 != "none"
    )  # the policy's, which has just learned: the measure sees them
    assert set(comparison["rested_bytes"]) == set(comparison["sync_bytes"]) == {0}
    copied, size = comparison["read_only_bytes"]
    assert copied == size > 0
