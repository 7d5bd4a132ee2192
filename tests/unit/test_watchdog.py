"""Phases that do not end and ranks that stay behind end a run, with a name and a place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempo_megatron.config import FaultsConfig
from tempo_megatron.supervision import watchdog
from tempo_megatron.supervision.watchdog import Watchdog
from tests.unit.test_interruption import Store


class Shared(Store):
    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]


class Ended(Exception):
    pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that watchdogs see; sleeping takes none."""
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watchdog.time, "sleep", lambda _: None)
    return now


def made(
    rank: int, place: tuple[int, str, float], directory: Path, store: Shared, monkeypatch: pytest.MonkeyPatch
) -> Watchdog:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(watchdog, "rank_and_ranks", lambda: (rank, 2))
    return Watchdog(lambda: place, FaultsConfig(lag_limit_seconds=45), directory, store, end)


def test_a_phase_over_its_limit_ends_the_run_with_its_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """Generation has a limit of its own."""
    made(0, (7, "generate", 3700.0), tmp_path, Shared(), monkeypatch).look()
    with pytest.raises(Ended, match="70"):
        made(0, (7, "refine", 3700.0), tmp_path, Shared(), monkeypatch).look()
    shown = capfd.readouterr().err
    assert "rank 0" in shown and "refine has taken 3700 s, the limit is 3600 s" in shown
    record = (tmp_path / "rank-0.txt").read_text()
    assert "test_watchdog.py" in record and "last collectives" in record


def test_a_rank_that_stays_a_phase_behind_is_named_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """Not while the limit has not passed since the others went on; the others end too, and leave it the word."""
    store = Shared()
    late = made(1, (4, "grade", 50.0), tmp_path, store, monkeypatch)
    first = made(0, (5, "calibrate", 50.0), tmp_path, store, monkeypatch)
    for clock[0] in (0.0, 44.0):
        late.look()
        first.look()
    assert "tempo/hung" not in store
    clock[0] = 46.0
    with pytest.raises(Ended):
        first.look()
    assert "rank 0" in (shown := capfd.readouterr().err) and "because of rank 1, which hangs" in shown
    with pytest.raises(Ended):
        late.look()
    assert "rank 1" in (shown := capfd.readouterr().err) and "in grade, a phase behind the others for 45 s" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-1.txt"]


def test_ranks_that_go_on_in_step_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """A phase of an hour's generation is no hang as long as nobody is ahead."""
    store = Shared()
    ranks = [made(rank, (9, "generate", 3000.0), tmp_path, store, monkeypatch) for rank in (1, 0)]
    for clock[0] in (0.0, 1000.0, 3000.0):
        for rank in ranks:
            rank.look()
    assert "tempo/hung" not in store
