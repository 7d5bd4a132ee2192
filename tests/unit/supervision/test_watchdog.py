"""Phases that do not end and ranks that stay behind end a run, with a name and a place."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tempo_megatron.config import FaultsConfig
from tempo_megatron.supervision import watchdog
from tempo_megatron.supervision.watchdog import Watchdog
from tempo_megatron.utils.heartbeat import Pace, PhaseProgress, expect_pace
from tests.unit.supervision.test_interruption import Store


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


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever collectives an earlier test of this process left."""
    monkeypatch.setattr(watchdog.collectives, "main_thread_waits", lambda: False)
    monkeypatch.setattr(watchdog.collectives, "under_way", lambda: False)


def at_place(entered: int, phase: str, seconds: float = 50.0, ticks: int = 0) -> PhaseProgress:
    return PhaseProgress(entered, phase, seconds, False, ticks)


def made(
    rank: int, place: Callable[[], PhaseProgress], directory: Path, store: Shared, monkeypatch: pytest.MonkeyPatch
) -> Watchdog:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(watchdog, "rank_and_ranks", lambda: (rank, 2))
    return Watchdog(place, FaultsConfig(lag_limit_seconds=45), directory, store, end)


@pytest.mark.parametrize("phase", ["m_step", "start"])
def test_a_phase_over_its_limit_ends_the_run_with_its_stacks(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """Generation has a limit of its own; the building of models has a phase's."""
    made(0, lambda: at_place(7, "generate", 3700.0), tmp_path, Shared(), monkeypatch).look_at_phase()
    with pytest.raises(Ended, match="70"):
        made(0, lambda: at_place(7, phase, 3700.0), tmp_path, Shared(), monkeypatch).look_at_phase()
    shown = capfd.readouterr().err
    assert "rank 0" in shown and f"{phase} has taken 3700 s, the limit is 3600 s" in shown
    record = (tmp_path / "rank-0.txt").read_text()
    assert "test_watchdog.py" in record and "last collectives" in record


def look_until(seconds: int, clock: list[float], *ranks: Watchdog) -> None:
    while clock[0] < seconds:
        clock[0] += 2.0
        for rank in ranks:
            rank.look_at_phase()
            rank.look_at_ranks()


def test_a_rank_that_stays_a_phase_behind_is_named_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """Not while the limit has not passed since the others went on; the others end too, and leave it the word."""
    store = Shared()
    late = made(1, lambda: at_place(4, "grade"), tmp_path, store, monkeypatch)
    first = made(0, lambda: at_place(5, "e_step"), tmp_path, store, monkeypatch)
    look_until(46, clock, late, first)
    assert "tempo/hung" not in store
    with pytest.raises(Ended):
        look_until(50, clock, first)
    assert "rank 0" in (shown := capfd.readouterr().err) and "because rank 1 hangs" in shown
    with pytest.raises(Ended):
        late.look_at_ranks()
    assert "rank 1" in (shown := capfd.readouterr().err) and "in grade, a phase behind the others for 45 s" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-1.txt"]


@pytest.mark.parametrize("sign", ["main_thread_waits", "under_way"])
def test_a_rank_that_hangs_among_ranks_that_wait_for_it_is_named(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """All in one phase. The rank that waits, itself or its GPU, says so, and leaves the word to the other."""
    store, waits = Shared(), [False]
    monkeypatch.setattr(watchdog.collectives, sign, lambda: waits[0])
    ranks = [made(rank, lambda: at_place(5, "m_step"), tmp_path, store, monkeypatch) for rank in (0, 1)]
    with pytest.raises(Ended):
        while clock[0] < 60:
            clock[0] += 2.0
            for rank, looks in enumerate(ranks):
                waits[0] = rank == 0
                looks.look_at_ranks()
    assert 45 < clock[0] <= 50
    assert "because rank 1 hangs" in capfd.readouterr().err
    with pytest.raises(Ended):
        ranks[1].look_at_ranks()
    assert "rank 1" in (shown := capfd.readouterr().err) and "in m_step, where no rank has done anything" in shown


def test_ranks_that_go_on_in_step_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """An hour's generation is no hang as long as one rank moves on, nor a write as long as it says that it cannot."""
    store = Shared()

    def moving() -> PhaseProgress:
        return at_place(9, "generate", 3000.0, ticks=int(min(clock[0], 1000)))

    ranks = [made(0, lambda: at_place(9, "generate", 3000.0), tmp_path, store, monkeypatch)]
    ranks += [made(1, moving, tmp_path, store, monkeypatch)]
    look_until(1000, clock, *ranks)
    with expect_pace(Pace.untimed):
        look_until(2000, clock, *ranks)
    assert "tempo/hung" not in store


def test_a_job_that_was_stopped_and_goes_on_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """Slurm suspends a job for an hour: the first rank to wake up finds that nobody has moved, and its phase to have
    taken longer than its limit."""
    store = Shared()

    def here() -> PhaseProgress:
        return at_place(9, "m_step", clock[0])

    ranks = [made(rank, here, tmp_path, store, monkeypatch) for rank in (0, 1)]
    look_until(20, clock, *ranks)
    clock[0] += 3600.0
    for rank in ranks:
        rank.look_at_phase()
        rank.look_at_ranks()
    assert "tempo/hung" not in store
    with pytest.raises(Ended):
        while clock[0] < 3600 + 3700:
            clock[0] += 2.0
            ranks[0].look_at_phase()
    assert clock[0] > 3600 + 3590


def test_a_store_that_does_not_answer_does_not_keep_a_phase_from_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank has stopped, and with it the store: who asks it waits."""
    ended = threading.Event()

    class Silent(Shared):
        def set(self, key: str, value: str) -> None:
            ended.wait(60)

    monkeypatch.setattr(watchdog, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "rank_and_ranks", lambda: (0, 2))
    looks = Watchdog(lambda: at_place(7, "m_step", 3700.0), FaultsConfig(), tmp_path, Silent(), lambda _: ended.set())
    looks.start()
    assert ended.wait(30)
    looks.stop()


def test_a_look_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever fails in it, what hangs afterwards is found; it is said once."""
    ended, looks = threading.Event(), itertools.count()

    def place() -> PhaseProgress:
        if next(looks) < 3:
            raise OSError(28, "No space left")
        return at_place(7, "m_step", 3700.0)

    monkeypatch.setattr(watchdog, "_POLL_SECONDS", 0.01)
    made = Watchdog(place, FaultsConfig(), tmp_path, end=lambda _: ended.set())
    made.start()
    assert ended.wait(30)
    made.stop()
    assert capfd.readouterr().err.count("could not look for hangs: OSError(28, 'No space left')") == 1


def test_ranks_that_hang_in_one_collective_all_show_their_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """The first ends when the others have had the time to speak: launchers kill those that are left."""
    order: list[str] = []
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: order.append(f"sleeps {seconds:.0f}"))
    store = Shared()
    store.set("tempo/hung", "1 0: where no rank has done anything for 45 s")
    first = made(1, lambda: at_place(5, "m_step"), tmp_path, store, monkeypatch)
    other = made(0, lambda: at_place(5, "m_step"), tmp_path, store, monkeypatch)
    for rank in (first, other):
        monkeypatch.setattr(rank, "_say", lambda text: order.append("speaks"))
        with pytest.raises(Ended):
            rank.look_at_ranks()
    assert order == ["speaks", "sleeps 10", "sleeps 5", "speaks", "sleeps 5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0.txt", "rank-1.txt"]
