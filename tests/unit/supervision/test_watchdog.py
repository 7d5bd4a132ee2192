"""The watchdog ends a run whose phase does not end or whose rank stays behind, and names rank and phase."""

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


class SharedStore(Store):
    """The part of a process group's store that watchdogs use."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]


class ProcessEnded(Exception):
    """Raised where the process would end."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the time that watchdogs see. Sleeping takes no time."""
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watchdog.time, "sleep", lambda _: None)
    return now


@pytest.fixture(autouse=True)
def no_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the collectives that an earlier test of this process has left."""
    monkeypatch.setattr(watchdog.collectives, "main_thread_waits", lambda: False)
    monkeypatch.setattr(watchdog.collectives, "collective_in_flight", lambda: False)


def in_phase(phases_entered: int, phase: str, seconds: float = 50.0, ticks: int = 0) -> PhaseProgress:
    return PhaseProgress(phases_entered, phase, seconds, False, ticks)


def make_watchdog(
    rank: int,
    progress: Callable[[], PhaseProgress],
    directory: Path,
    store: SharedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> Watchdog:
    def end(code: int) -> None:
        raise ProcessEnded(code)

    monkeypatch.setattr(watchdog, "rank_and_ranks", lambda: (rank, 2))
    return Watchdog(progress, FaultsConfig(lag_limit_seconds=45), directory, store, end)


@pytest.mark.parametrize("phase", ["m_step", "start"])
def test_a_phase_over_its_limit_ends_the_run_with_its_stacks(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """Generation has a limit of its own. The start, which builds models, has the limit of a phase."""
    make_watchdog(0, lambda: in_phase(7, "generate", 3700.0), tmp_path, SharedStore(), monkeypatch).check_phase()
    with pytest.raises(ProcessEnded, match="70"):
        make_watchdog(0, lambda: in_phase(7, phase, 3700.0), tmp_path, SharedStore(), monkeypatch).check_phase()
    printed = capfd.readouterr().err
    assert "rank 0" in printed and f"{phase} has taken 3700 s, the limit is 3600 s" in printed
    record = (tmp_path / "rank-0.txt").read_text()
    assert "test_watchdog.py" in record and "last collectives" in record


def poll_until(seconds: int, clock: list[float], *watchdogs: Watchdog) -> None:
    """Let these watchdogs poll every two seconds."""
    while clock[0] < seconds:
        clock[0] += 2.0
        for each in watchdogs:
            each.check_phase()
            each.check_ranks()


def test_a_rank_that_stays_a_phase_behind_is_named_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """It is named once the limit has passed since the others went on. They end too, after its report."""
    store = SharedStore()
    late = make_watchdog(1, lambda: in_phase(4, "grade"), tmp_path, store, monkeypatch)
    first = make_watchdog(0, lambda: in_phase(5, "e_step"), tmp_path, store, monkeypatch)
    poll_until(46, clock, late, first)
    assert "tempo/hung" not in store
    with pytest.raises(ProcessEnded):
        poll_until(50, clock, first)
    assert "rank 0" in (printed := capfd.readouterr().err) and "because rank 1 hangs" in printed
    with pytest.raises(ProcessEnded):
        late.check_ranks()
    assert "rank 1" in (printed := capfd.readouterr().err) and "in grade, a phase behind the others for 45 s" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-1.txt"]


@pytest.mark.parametrize("waiting", ["main_thread_waits", "collective_in_flight"])
def test_a_rank_that_hangs_among_ranks_that_wait_for_it_is_named(
    waiting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """All ranks are in one phase. The waiting rank, whether it or its GPU waits, reports that and is not named."""
    store, waits = SharedStore(), [False]
    monkeypatch.setattr(watchdog.collectives, waiting, lambda: waits[0])
    watchdogs = [make_watchdog(rank, lambda: in_phase(5, "m_step"), tmp_path, store, monkeypatch) for rank in (0, 1)]
    with pytest.raises(ProcessEnded):
        while clock[0] < 60:
            clock[0] += 2.0
            for rank, each in enumerate(watchdogs):
                waits[0] = rank == 0
                each.check_ranks()
    assert 45 < clock[0] <= 50
    assert "because rank 1 hangs" in capfd.readouterr().err
    with pytest.raises(ProcessEnded):
        watchdogs[1].check_ranks()
    assert "rank 1" in (printed := capfd.readouterr().err) and "in m_step, where no rank has done anything" in printed


def test_a_job_in_which_one_rank_ticks_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """An hour of generation is no hang while one rank ticks, nor is a write while the pace is untimed."""
    store = SharedStore()

    def ticking() -> PhaseProgress:
        return in_phase(9, "generate", 3000.0, ticks=int(min(clock[0], 1000)))

    watchdogs = [make_watchdog(0, lambda: in_phase(9, "generate", 3000.0), tmp_path, store, monkeypatch)]
    watchdogs += [make_watchdog(1, ticking, tmp_path, store, monkeypatch)]
    poll_until(1000, clock, *watchdogs)
    with expect_pace(Pace.untimed):
        poll_until(2000, clock, *watchdogs)
    assert "tempo/hung" not in store


def test_a_suspended_job_that_continues_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """Slurm suspends a job for an hour. The first rank that wakes sees no progress of the others, and a phase that took
    longer than its limit."""
    store = SharedStore()

    def progress() -> PhaseProgress:
        return in_phase(9, "m_step", clock[0])

    watchdogs = [make_watchdog(rank, progress, tmp_path, store, monkeypatch) for rank in (0, 1)]
    poll_until(20, clock, *watchdogs)
    clock[0] += 3600.0
    for each in watchdogs:
        each.check_phase()
        each.check_ranks()
    assert "tempo/hung" not in store
    with pytest.raises(ProcessEnded):
        while clock[0] < 3600 + 3700:
            clock[0] += 2.0
            watchdogs[0].check_phase()
    assert clock[0] > 3600 + 3590


def test_a_store_that_does_not_answer_does_not_keep_a_phase_from_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank has stopped, and the store with it: every request to the store waits."""
    ended = threading.Event()

    class SilentStore(SharedStore):
        def set(self, key: str, value: str) -> None:
            ended.wait(60)

    monkeypatch.setattr(watchdog, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "rank_and_ranks", lambda: (0, 2))
    polling = Watchdog(
        lambda: in_phase(7, "m_step", 3700.0), FaultsConfig(), tmp_path, SilentStore(), lambda _: ended.set()
    )
    polling.start()
    assert ended.wait(30)
    polling.stop()


def test_polling_goes_on_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A later hang is detected whatever failed in a poll. The same error is logged once."""
    ended, polls = threading.Event(), itertools.count()

    def progress() -> PhaseProgress:
        if next(polls) < 3:
            raise OSError(28, "No space left")
        return in_phase(7, "m_step", 3700.0)

    monkeypatch.setattr(watchdog, "_POLL_SECONDS", 0.01)
    polling = Watchdog(progress, FaultsConfig(), tmp_path, end=lambda _: ended.set())
    polling.start()
    assert ended.wait(30)
    polling.stop()
    assert capfd.readouterr().err.count("could not look for hangs: OSError(28, 'No space left')") == 1


def test_ranks_that_hang_in_one_collective_all_show_their_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """The first ends after the others had time to report, because launchers kill the ranks that are left."""
    events: list[str] = []
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: events.append(f"sleeps {seconds:.0f}"))
    store = SharedStore()
    store.set("tempo/hung", "1 0: where no rank has done anything for 45 s")
    first = make_watchdog(1, lambda: in_phase(5, "m_step"), tmp_path, store, monkeypatch)
    other = make_watchdog(0, lambda: in_phase(5, "m_step"), tmp_path, store, monkeypatch)
    for each in (first, other):
        monkeypatch.setattr(each, "_say", lambda text: events.append("reports"))
        with pytest.raises(ProcessEnded):
            each.check_ranks()
    assert events == ["reports", "sleeps 10", "sleeps 5", "reports", "sleeps 5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0.txt", "rank-1.txt"]
