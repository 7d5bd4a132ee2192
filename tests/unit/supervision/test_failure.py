"""The last lines of a rank that fails."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tempo_megatron.supervision import failure


class ProcessEnded(Exception):
    """Raised where the process would end."""


@pytest.fixture(autouse=True)
def no_exit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise ProcessEnded instead of ending the process, and restore the signal handler afterwards."""

    def end(code: int) -> None:
        raise ProcessEnded(code)

    monkeypatch.setattr(failure.os, "_exit", end)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_rank_ends_although_its_log_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks would wait for it in a collective. The traceback is in the run directory all the same.

    A full disk, for one, makes both a save and the log fail.
    """
    with Path("/dev/full").open("w") as full:
        with monkeypatch.context() as patched, pytest.raises(ProcessEnded):
            patched.setattr(failure.sys, "stderr", full)
            failure.end_failed_rank(OSError(28, "No space left"), tmp_path)
        with contextlib.suppress(OSError):
            full.close()
    assert "No space left" in (tmp_path / "failures" / "rank-0.txt").read_text()


def test_a_launchers_signal_does_not_silence_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun sends SIGTERM to all ranks once one has failed, while another rank still finds out which it was."""

    def signaled(rank: int, peer_lost: bool) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "rank 1 failed"

    monkeypatch.setattr(failure, "rank_and_ranks", lambda: (0, 2))
    monkeypatch.setattr(failure, "_cause_elsewhere", signaled)
    with pytest.raises(ProcessEnded, match=str(failure.EXIT_CODE)):
        failure.end_failed_rank(RuntimeError("gloo: Connection closed by peer"), tmp_path)
    assert "ends because rank 1 failed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
