"""One run works in a directory, and one that has ended is in nobody's way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tempo_megatron.run_dir import lock
from tempo_megatron.run_dir.lock import LockOwner, RunDirectoryInUse, RunLock
from tests.clock import Clock, UntilTouched

ACQUIRES = "import sys, time; from pathlib import Path; from tempo_megatron.run_dir.lock import RunLock; "
ACQUIRES += "RunLock(Path(sys.argv[1])).acquire(); print('taken', flush=True); time.sleep(600)"
FAST = "from tempo_megatron.run_dir import lock; "
FAST += "lock._TOUCH_SECONDS, lock._WATCH_SECONDS, lock._WATCHES = 0.05, 2.0, 2; import sys"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time for the runs of this process, which touch nothing by themselves: one that gives way would end pytest."""
    clock = Clock()
    monkeypatch.setattr(lock, "time", clock)
    monkeypatch.setattr(RunLock, "_touch", lambda self, number: None)
    return clock


def elsewhere(directory: Path) -> RunLock:
    """Return the lock of a run on another machine, in a Slurm job."""
    run_lock = RunLock(directory)
    run_lock._owner = replace(LockOwner.this_process(), host="node7", machine="another", job="123, restart 2")
    return run_lock


def acquires_at_once(run_lock: RunLock, clock: Clock) -> bool:
    """Whether the lock is acquired without watching another run first."""
    before = clock.now
    run_lock.acquire()
    return clock.now == before


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """One that works in the directory on this machine."""
    command = [sys.executable, "-c", ACQUIRES, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout and started.stdout.readline() == "taken\n"
        yield started
        started.kill()


def test_a_second_run_is_refused_and_told_who_works_there(clock: Clock, tmp_path: Path) -> None:
    """Process, host, job and since when; it may begin once the first has left, which leaves nothing behind."""
    run = tmp_path / "run"
    first = elsewhere(run)
    first.acquire()
    clock.works(run / "running-1")
    message = rf"process {os.getpid()} on node7 \(Slurm job 123, restart 2\), since 20\d\d-.* run_dir"
    with pytest.raises(RunDirectoryInUse, match=message):
        RunLock(run).acquire()
    first.release()
    assert not list(run.iterdir())
    assert acquires_at_once(RunLock(run), clock)


def test_of_two_that_begin_together_the_one_that_is_ready_first_goes_on(clock: Clock, tmp_path: Path) -> None:
    """There was no mark when the second began."""
    second, first = RunLock(tmp_path), elsewhere(tmp_path)
    first.acquire()
    clock.works(tmp_path / "running-1")
    with pytest.raises(RunDirectoryInUse):
        second.acquire()


@pytest.mark.parametrize("seconds", [6, 24])
def test_a_run_that_is_just_ending_is_waited_for(clock: Clock, tmp_path: Path, seconds: float) -> None:
    """It saves after a signal, say, when it is started again."""
    elsewhere(tmp_path).acquire()
    clock.works(tmp_path / "running-1", until=seconds)
    RunLock(tmp_path).acquire()
    assert seconds < clock.now < seconds + 11


def test_a_live_process_of_this_machine_is_in_the_way_and_a_killed_one_is_not(
    clock: Clock, tmp_path: Path, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it, a zombie here, needs no watching."""
    monkeypatch.setattr(lock, "time", UntilTouched(tmp_path / "running-1"))
    monkeypatch.setattr(lock, "_PAUSE_SECONDS", 6.0)  # longer than a watch: the mark is touched in each
    monkeypatch.setattr(lock, "_WATCHES", 2)
    with pytest.raises(RunDirectoryInUse, match=f"process {process.pid} on"):
        RunLock(tmp_path).acquire()
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert acquires_at_once(RunLock(tmp_path), clock)


@pytest.mark.parametrize("skew", [-7200, 0, 7200])
def test_a_run_that_was_killed_on_another_machine_is_not_in_the_way(clock: Clock, tmp_path: Path, skew: float) -> None:
    """Whatever the clocks of nodes and file system say, at once where the start took as long as the watch."""
    elsewhere(tmp_path).acquire()
    os.utime(tmp_path / "running-1", (time.time() + skew, time.time() + skew))
    resumed = RunLock(tmp_path)
    clock.sleep(6)
    assert acquires_at_once(resumed, clock)


def test_a_mark_whose_time_moves_once_is_not_one_of_a_run_that_works(clock: Clock, tmp_path: Path) -> None:
    """A node may have known the time of the mark from before the last touch of a run that was killed."""
    elsewhere(tmp_path).acquire()
    resumed = RunLock(tmp_path)
    os.utime(tmp_path / "running-1", (1, 1))
    resumed.acquire()
    assert clock.now > 5


def test_a_copy_of_a_run_that_works_is_free(clock: Clock, tmp_path: Path, process: subprocess.Popen[str]) -> None:
    """Its mark names a live process of this machine, but nobody touches it."""
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    RunLock(copy).acquire()


@pytest.mark.parametrize("text", ["", '{"host": "node7"}'])
def test_a_mark_that_cannot_be_read_is_one_of_a_run_if_it_is_touched(clock: Clock, tmp_path: Path, text: str) -> None:
    """One that begins has not written it yet; and a node that goes down may leave an empty file."""
    mark = tmp_path / "running-4"
    mark.write_text(text)
    clock.works(mark)
    second = RunLock(tmp_path)
    with pytest.raises(RunDirectoryInUse, match=r"of unknown name; it has touched .*running-4"):
        second.acquire()
    clock.touched.clear()
    second.acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["running-5"]


def test_a_run_that_failed_may_begin_again_in_its_process(clock: Clock, tmp_path: Path) -> None:
    """Its mark is its own."""
    RunLock(tmp_path).acquire()
    assert acquires_at_once(RunLock(tmp_path), clock)


@pytest.mark.parametrize("has_expired_lock", [False, True], ids=["empty", "killed run's"])
def test_of_several_that_follow_a_run_at_the_same_moment_one_has_the_directory(
    tmp_path: Path, has_expired_lock: bool
) -> None:
    """Where there is no mark, and where all find one that may be replaced: 200 times three threads."""
    for turn in range(200):
        run = tmp_path / str(turn)
        run.mkdir()
        if has_expired_lock:
            assert elsewhere(run)._create_next()
        locks, barrier = [RunLock(run) for _ in range(3)], threading.Barrier(3)

        def create_next(run_lock: RunLock, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return run_lock._create_next()

        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(create_next, locks)) == [False, False, True]
        assert [path.name for path in run.iterdir()] == ["running-2" if has_expired_lock else "running-1"]


def test_one_that_looked_before_others_came_and_went_does_not_follow_them(tmp_path: Path) -> None:
    """Its number is free again, or was left behind."""
    late, first = RunLock(tmp_path), elsewhere(tmp_path)
    assert first._create_next()
    second = elsewhere(tmp_path)
    assert second._create_next()
    assert not late._create_next()
    assert [path.name for path in tmp_path.iterdir()] == ["running-2"]


def test_a_run_that_has_left_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another may have followed it while it still looked: it ends with the exit code of its own end."""
    run_lock, newest_lock_file = elsewhere(tmp_path), lock._newest_lock_file
    assert run_lock._create_next()

    def slowly(directory: Path) -> object:
        monkeypatch.setattr(lock, "_newest_lock_file", newest_lock_file)
        run_lock.release()
        assert RunLock(tmp_path)._create_next()
        return newest_lock_file(directory)

    def gives_way(other: LockOwner) -> None:
        raise AssertionError(f"it gave way to {other}")

    monkeypatch.setattr(lock, "_newest_lock_file", slowly)
    monkeypatch.setattr(lock, "_TOUCH_SECONDS", 0)
    monkeypatch.setattr(run_lock, "_give_way", gives_way)
    run_lock._touch(1)


def test_a_mark_that_cannot_be_written_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk: the next start would watch it."""

    def full(described: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "json", SimpleNamespace(dumps=full, load=json.load))
    with pytest.raises(OSError, match="No space"):
        RunLock(tmp_path).acquire()
    assert not list(tmp_path.iterdir())


def test_several_processes_that_start_together_leave_one(tmp_path: Path) -> None:
    """All of them find the mark of a run that was killed, and watch it. One that the machine held up for longer than
    the others watched ends by itself."""
    assert elsewhere(tmp_path)._create_next()
    text = ACQUIRES.replace("import sys", FAST)
    command = [sys.executable, "-c", text, tmp_path]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    deadline = time.monotonic() + 90
    while sum(process.poll() is None for process in started) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    [survivor] = [process for process in started if process.poll() is None]
    survivor.kill()
    outcomes = [(*process.communicate(), process.returncode) for process in started]
    assert sorted(code for *_, code in outcomes) == [-signal.SIGKILL, 1, 1, 1]
    assert all("another run works there" in error or "taken over" in error for _, error, code in outcomes if code == 1)
    assert [output for output, _, code in outcomes if code != 1] == ["taken\n"]


def test_a_run_that_stood_still_ends_once_another_has_begun(tmp_path: Path) -> None:
    """Stopped for longer than a look takes, and then woken: two would delete each other's checkpoints."""
    text = ACQUIRES.replace("time.sleep(600)", "time.sleep(120)")
    stopped = subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert stopped.stdout and stopped.stdout.readline() == "taken\n"
    (tmp_path / "running-2").write_text(json.dumps(asdict(elsewhere(tmp_path)._owner)))
    _, message = stopped.communicate(timeout=90)
    assert stopped.returncode == 1
    assert "was taken over by process" in message and "on node7 (Slurm job 123, restart 2)" in message
