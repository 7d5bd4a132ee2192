"""What a rank says as it ends because something failed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tempo_megatron.supervision import failure


class Ended(Exception):
    """The process would have."""


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What ends the process raises Ended; signals mean afterwards what they meant before."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(failure.os, "_exit", end)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_log_that_cannot_be_written_keeps_no_rank_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would wait for it in a collective; a full disk is also what makes a save fail. The run's directory
    has the traceback."""
    with Path("/dev/full").open("w") as full:
        with monkeypatch.context() as patched, pytest.raises(Ended):
            patched.setattr(failure.sys, "stderr", full)
            failure.end_of_failed_rank(OSError(28, "No space left"), tmp_path)
        with contextlib.suppress(OSError):
            full.close()
    assert "No space left" in (tmp_path / "failures" / "rank-0.txt").read_text()


def test_a_launchers_signal_does_not_silence_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun sends SIGTERM to all ranks as soon as one has failed, while another still finds out which that was."""

    def signalled(rank: int, lost: bool) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "rank 1 failed"

    monkeypatch.setattr(failure, "rank_and_ranks", lambda: (0, 2))
    monkeypatch.setattr(failure, "_other", signalled)
    with pytest.raises(Ended, match=str(failure.EXIT_CODE)):
        failure.end_of_failed_rank(RuntimeError("gloo: Connection closed by peer"), tmp_path)
    assert "ends because rank 1 failed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
