"""Runs side by side: which one starts when, and where."""

from __future__ import annotations

import threading
from pathlib import Path

import comparison.runs
import pytest
from comparison.runs import Piece, Slots, train_all

LIMIT = 20
"""Seconds after which a run that waits for another one has failed."""


def piece(name: str, start: str | None = None) -> Piece:
    return Piece(Path("recipe.yaml"), Path(name), (), start=Path(start) if start else None)


def test_a_run_does_not_wait_for_the_start_of_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots. tempo-0 trains while start-1 still does: start-1 ends only after tempo-0 has."""
    tempo_has_ended = threading.Event()

    def train(run: Piece, _: str | None) -> None:
        if run.directory.name == "start-1":
            assert tempo_has_ended.wait(LIMIT), "tempo-0 waits for start-1"
        if run.directory.name == "tempo-0":
            tempo_has_ended.set()

    monkeypatch.setattr(comparison.runs, "train", train)
    train_all([piece("start-0"), piece("start-1"), piece("tempo-0", "start-0"), piece("tempo-1", "start-1")], Slots(2))


def test_a_start_that_fails_lets_the_other_runs_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own runs are tried after it has ended; `train` refuses them. All errors are raised at the end."""
    order: list[tuple[str, str | None]] = []

    def train(run: Piece, gpu: str | None) -> None:
        order.append((run.directory.name, gpu))
        if run.directory.name.endswith("-0"):
            raise RuntimeError(f"{run.directory.name} failed")

    monkeypatch.setattr(comparison.runs, "train", train)
    runs = [piece("tempo-0", "start-0"), piece("tempo-1", "start-1"), piece("start-0"), piece("start-1")]
    with pytest.raises(ExceptionGroup) as failure:
        train_all(runs, Slots(1, ("3",)))
    assert order == [("start-0", "3"), ("tempo-0", "3"), ("start-1", "3"), ("tempo-1", "3")]
    assert [str(error) for error in failure.value.exceptions] == ["start-0 failed", "tempo-0 failed"]
    assert capsys.readouterr().err == "start-0 failed\ntempo-0 failed\n"
