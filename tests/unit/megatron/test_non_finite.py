"""Updates that are not finite are left out, kept, and not endured for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tempo_megatron.megatron.batch import from_sequences
from tempo_megatron.megatron.non_finite import NonFiniteGuard, NonFiniteUpdates

BATCH = from_sequences([[1, 2]], [[3, 4, 5]]).with_columns(advantages=torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]]))
FINE, WRONG = {"ratio": torch.ones(1)}, {"ratio": torch.tensor([float("inf")])}


def test_a_finite_update_passes_and_ends_a_row_of_others(tmp_path: Path) -> None:
    guard = NonFiniteGuard(2, tmp_path / "made")
    for _ in range(3):
        assert not guard.passes("policy", BATCH, FINE, float("nan"))
        assert guard.passes("policy", BATCH, FINE, 1.0)
    assert len(list((tmp_path / "made").iterdir())) == 3


def test_what_is_left_out_is_kept_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens, columns and what was reported, to be looked at; the line names the number and the file."""
    assert not NonFiniteGuard(2, tmp_path).passes("critic", BATCH, WRONG, 1.0)
    kept = load_file(tmp_path / "critic-1.safetensors")
    assert kept["tokens"].tolist() == BATCH.tokens.tolist()
    assert kept["columns.advantages"].tolist() == BATCH.columns["advantages"].tolist()
    assert kept["reported.ratio"].tolist() == [float("inf")]
    assert "critic: an update is skipped, not finite: ratio" in capsys.readouterr().err


def test_an_update_that_would_learn_from_what_is_not_finite_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A NaN value of the critic reaches the loss as a column: it is named, whatever the loss made of it."""
    spoilt = BATCH.with_columns(advantages=torch.full((1, 5), float("nan")))
    assert not NonFiniteGuard(2, tmp_path).passes("policy", spoilt, FINE, 1.0)
    assert load_file(tmp_path / "policy-1.safetensors")["columns.advantages"].isnan().all()
    assert "policy: an update is skipped, not finite: advantages" in capsys.readouterr().err


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    guard = NonFiniteGuard(3, tmp_path)
    assert not guard.passes("policy", BATCH, WRONG, 1.0)
    assert not guard.passes("policy", BATCH, FINE, float("inf"))
    with pytest.raises(NonFiniteUpdates, match="policy: 3 updates in a row are not finite"):
        guard.passes("policy", BATCH, FINE, float("nan"))
