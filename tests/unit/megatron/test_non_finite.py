"""Updates that are not finite are skipped and saved, and too many of them stop the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.non_finite import NonFiniteGuard, NonFiniteUpdates

BATCH = from_sequences([[1, 2]], [[3, 4, 5]]).with_columns(advantages=torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]]))
FINE, WRONG = {"ratio": torch.ones(1)}, {"ratio": torch.tensor([float("inf")])}


def test_a_finite_update_passes_and_resets_the_count(tmp_path: Path) -> None:
    guard = NonFiniteGuard(2, tmp_path / "non_finite")
    for _ in range(3):
        assert not guard.passes("policy", BATCH, FINE, float("nan"))
        assert guard.passes("policy", BATCH, FINE, 1.0)
    assert len(list((tmp_path / "non_finite").iterdir())) == 3


def test_a_skipped_update_is_saved_completely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens, columns, routes and reported tensors are saved, and the message names the tensor."""
    routes = torch.arange(8).view(4, 1, 2).to(torch.uint16)
    assert not NonFiniteGuard(2, tmp_path).passes("critic", replace(BATCH, routes=(routes,)), WRONG, 1.0)
    saved = load_file(tmp_path / "critic-1.safetensors")
    assert saved["tokens"].tolist() == BATCH.tokens.tolist()
    assert saved["columns.advantages"].tolist() == BATCH.columns["advantages"].tolist()
    assert torch.equal(saved["routes.0"], routes)
    assert saved["reported.ratio"].tolist() == [float("inf")]
    assert "critic: an update is skipped, not finite: ratio" in capsys.readouterr().err


def test_an_update_with_a_non_finite_column_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NaN value of the critic reaches the loss as a column, which the message names even if the loss is finite."""
    non_finite = BATCH.with_columns(advantages=torch.full((1, 5), float("nan")))
    assert not NonFiniteGuard(2, tmp_path).passes("policy", non_finite, FINE, 1.0)
    assert load_file(tmp_path / "policy-1.safetensors")["columns.advantages"].isnan().all()
    assert "policy: an update is skipped, not finite: advantages" in capsys.readouterr().err


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    guard = NonFiniteGuard(3, tmp_path)
    assert not guard.passes("policy", BATCH, WRONG, 1.0)
    assert not guard.passes("policy", BATCH, FINE, float("inf"))
    with pytest.raises(NonFiniteUpdates, match="policy: 3 updates in a row are not finite"):
        guard.passes("policy", BATCH, FINE, float("nan"))
