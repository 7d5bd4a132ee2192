"""Every family through Transformer Engine on one GPU; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import CONFIGS, write_model
from tests.parallel.launcher import run_ranks
from tests.parallel.test_logits import WORKER, by_transformers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2.5e-2), ("fp32", 2e-3)])
def test_logits_are_near_those_of_transformers(precision: str, bound: float, tmp_path: Path) -> None:
    """The largest error as a share of the largest logit, against transformers on the CPU in fp32 with the same weights.
    In fp32 Transformer Engine multiplies in TF32."""
    for name in CONFIGS:
        write_model(name, tmp_path / "models" / name)
    run_ranks(WORKER, 1, tmp_path / "models", tmp_path / "out.pt", 1, 1, precision)
    found, shares = torch.load(tmp_path / "out.pt"), {}
    for name in CONFIGS:
        expected = by_transformers(tmp_path / "models" / name, upcast=precision == "bf16")
        errors = [(found[name][row, : len(truth)] - truth).abs().max() for row, truth in enumerate(expected)]
        shares[name] = float(max(errors) / max(truth.abs().max() for truth in expected))
    print(f"{precision}: " + ", ".join(f"{name} {share:.2e}" for name, share in shares.items()))
    assert max(shares.values()) < bound
