"""What a rank says as it ends because something failed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tempo_megatron.supervision import failure


class Ended(Exception):
    """The process would have."""


def test_a_launchers_signal_does_not_silence_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun sends SIGTERM to all ranks as soon as one has failed, while another still finds out which that was."""

    def signalled(rank: int, lost: bool) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "1"

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(failure, "rank_and_ranks", lambda: (0, 2))
    monkeypatch.setattr(failure, "_first", signalled)
    monkeypatch.setattr(failure.os, "_exit", end)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Ended, match=str(failure.EXIT_CODE)):
            failure.end_of_failed_rank(RuntimeError("gloo: Connection closed by peer"), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "ends because rank 1 failed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
