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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tempo_megatron import occupancy
from tempo_megatron.occupancy import Occupancy, Occupant, Occupied

TAKES = "import sys, time; from pathlib import Path; from tempo_megatron.occupancy import Occupancy; "
TAKES += "Occupancy(Path(sys.argv[1])).take(); print('taken', flush=True); time.sleep(600)"
FAST = "from tempo_megatron import occupancy; "
FAST += "occupancy._TOUCH_SECONDS, occupancy._WATCH_SECONDS, occupancy._WATCHES = 0.05, 2.0, 2; import sys"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run touches its mark 50 times a second and is watched for three times a second."""
    for name, value in {"TOUCH_SECONDS": 0.02, "WATCH_SECONDS": 1.0, "WATCHES": 3, "PAUSE_SECONDS": 0.02}.items():
        monkeypatch.setattr(occupancy, f"_{name}", value)


def elsewhere(directory: Path) -> Occupancy:
    """Of a run on another machine, in a Slurm job."""
    made = Occupancy(directory)
    made._me = replace(Occupant.this_process(), host="node7", machine="another", job="123, restart 2")
    return made


def take_at_once(made: Occupancy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if it would watch first."""

    def wait(seconds: float) -> None:
        raise AssertionError("it waited")

    with monkeypatch.context() as patched:
        patched.setattr(occupancy, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
        made.take()


@pytest.fixture
def process(tmp_path: Path) -> subprocess.Popen[str]:
    """One that works in the directory on this machine."""
    started = subprocess.Popen([sys.executable, "-c", TAKES, tmp_path], stdout=subprocess.PIPE, text=True)
    assert started.stdout and started.stdout.readline() == "taken\n"
    return started


def test_a_second_run_is_refused_and_told_who_works_there(
    fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process, host, job and since when; it may begin once the first has left, which leaves nothing behind."""
    run = tmp_path / "run"
    first = elsewhere(run)
    first.take()
    told = rf"process {os.getpid()} on node7 \(Slurm job 123, restart 2\), since 20\d\d-.* run_dir"
    with pytest.raises(Occupied, match=told):
        Occupancy(run).take()
    first.leave()
    assert not list(run.iterdir())
    take_at_once(Occupancy(run), monkeypatch)


def test_of_two_that_begin_together_the_one_that_is_ready_first_goes_on(fast: None, tmp_path: Path) -> None:
    """There was no mark when the second began."""
    second, first = Occupancy(tmp_path), elsewhere(tmp_path)
    first.take()
    with pytest.raises(Occupied):
        second.take()
    first.leave()


def test_a_run_that_is_just_ending_is_waited_for(fast: None, tmp_path: Path) -> None:
    """It saves after a signal, say, when it is started again."""
    first, second = elsewhere(tmp_path), Occupancy(tmp_path)
    first.take()
    time.sleep(1.1)
    first._left.set()  # killed: the mark remains
    second.take()


def test_a_live_process_of_this_machine_is_in_the_way_and_a_killed_one_is_not(
    fast: None, tmp_path: Path, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it, a zombie here, needs no watching."""
    monkeypatch.setattr(occupancy, "_WATCH_SECONDS", 3.0)  # it touches its mark every second
    monkeypatch.setattr(occupancy, "_WATCHES", 2)
    with pytest.raises(Occupied, match=f"process {process.pid} on"):
        Occupancy(tmp_path).take()
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    take_at_once(Occupancy(tmp_path), monkeypatch)
    process.wait()


@pytest.mark.parametrize("skew", [-7200, 0, 7200])
def test_a_run_that_was_killed_on_another_machine_is_not_in_the_way(
    fast: None, tmp_path: Path, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clocks of nodes and file system say, at once where the start took as long as the watch."""
    killed = elsewhere(tmp_path)
    killed.take()
    killed._left.set()
    time.sleep(0.1)
    os.utime(tmp_path / "running-1", (time.time() + skew, time.time() + skew))
    resumed = Occupancy(tmp_path)
    time.sleep(1.1)
    take_at_once(resumed, monkeypatch)


def test_a_mark_whose_time_moves_once_is_not_one_of_a_run_that_works(fast: None, tmp_path: Path) -> None:
    """A node may have known the time of the mark from before the last touch of a run that was killed."""
    killed = elsewhere(tmp_path)
    killed.take()
    killed._left.set()
    time.sleep(0.1)
    resumed = Occupancy(tmp_path)
    os.utime(tmp_path / "running-1")
    resumed.take()


def test_a_copy_of_a_run_that_works_is_free(fast: None, tmp_path: Path, process: subprocess.Popen[str]) -> None:
    """Its mark names a live process of this machine, but nobody touches it."""
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    Occupancy(copy).take()
    process.kill()
    process.wait()


@pytest.mark.parametrize("text", ["", '{"host": "node7"}'])
def test_a_mark_that_cannot_be_read_is_one_of_a_run_if_it_is_touched(fast: None, tmp_path: Path, text: str) -> None:
    """One that begins has not written it yet; and a node that goes down may leave an empty file."""
    mark = tmp_path / "running-4"
    mark.write_text(text)
    second, ended = Occupancy(tmp_path), threading.Event()

    def touch() -> None:
        while not ended.wait(0.02):
            os.utime(mark)

    touching = threading.Thread(target=touch)
    touching.start()
    with pytest.raises(Occupied, match=r"of unknown name; it has touched .*running-4"):
        second.take()
    ended.set()
    touching.join()
    second.take()
    assert [path.name for path in tmp_path.iterdir()] == ["running-5"]
    second.leave()


def test_a_run_that_failed_may_begin_again_in_its_process(
    fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark is its own."""
    Occupancy(tmp_path).take()
    take_at_once(Occupancy(tmp_path), monkeypatch)


@pytest.mark.parametrize("left", [False, True], ids=["empty", "killed run's"])
def test_of_several_that_follow_a_run_at_the_same_moment_one_has_the_directory(tmp_path: Path, left: bool) -> None:
    """Where there is no mark, and where all find one that may be replaced: 200 times three threads."""
    for turn in range(200):
        run = tmp_path / str(turn)
        run.mkdir()
        if left:
            assert elsewhere(run)._claim()
        several, together = [Occupancy(run) for _ in range(3)], threading.Barrier(3)

        def claim(one: Occupancy, together: threading.Barrier = together) -> bool:
            together.wait()
            return one._claim()

        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(claim, several)) == [False, False, True]
        assert [path.name for path in run.iterdir()] == ["running-2" if left else "running-1"]


def test_one_that_looked_before_others_came_and_went_does_not_follow_them(tmp_path: Path) -> None:
    """Its number is free again, or was left behind."""
    late, first = Occupancy(tmp_path), elsewhere(tmp_path)
    assert first._claim()
    second = elsewhere(tmp_path)
    assert second._claim()
    assert not late._claim()
    assert [path.name for path in tmp_path.iterdir()] == ["running-2"]


def test_a_mark_that_cannot_be_written_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk: the next start would watch it."""

    def full(described: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(occupancy, "json", SimpleNamespace(dumps=full, load=json.load))
    with pytest.raises(OSError, match="No space"):
        Occupancy(tmp_path).take()
    assert not list(tmp_path.iterdir())


def test_several_processes_that_start_together_leave_one(tmp_path: Path) -> None:
    """All of them find the mark of a run that was killed, and watch it. One that the machine held up for longer than
    the others watched ends by itself."""
    assert elsewhere(tmp_path)._claim()
    text = TAKES.replace("import sys", FAST)
    command = [sys.executable, "-c", text, tmp_path]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    deadline = time.monotonic() + 90
    while sum(one.poll() is None for one in started) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    [left] = [one for one in started if one.poll() is None]
    left.kill()
    told = [(*one.communicate(), one.returncode) for one in started]
    assert sorted(code for *_, code in told) == [-signal.SIGKILL, 1, 1, 1]
    assert all("another run works there" in error or "taken over" in error for _, error, code in told if code == 1)
    assert [output for output, _, code in told if code != 1] == ["taken\n"]


def test_a_run_that_stood_still_ends_once_another_has_begun(tmp_path: Path) -> None:
    """Stopped for longer than a look takes, and then woken: two would delete each other's checkpoints."""
    text = TAKES.replace("time.sleep(600)", "time.sleep(60)")
    stopped = subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert stopped.stdout and stopped.stdout.readline() == "taken\n"
    (tmp_path / "running-2").write_text(json.dumps(asdict(elsewhere(tmp_path)._me)))
    _, told = stopped.communicate(timeout=30)
    assert stopped.returncode == 1
    assert "was taken over by process" in told and "on node7 (Slurm job 123, restart 2)" in told
