"""metrics.jsonl through resumes, kills and nodes that go down."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron.config import LoggingConfig
from tempo_megatron.metrics.writers import MetricsLog
from tests.disk import full_after


def opened(directory: Path, lines: int) -> MetricsLog:
    return MetricsLog(directory, LoggingConfig(tensorboard=False), lines)


def rows(directory: Path) -> list[Any]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_is_cut_back_to_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    """Lines that were written after the checkpoint are written again, a torn one among them."""
    log = opened(tmp_path, 0)
    for step in range(4):
        log.write({"step": step, "text": "\u2028 of two bytes: é"})
    with log.path.open("a") as file:
        file.write('{"step": 4, "te')
    opened(tmp_path, 2).write({"step": 2, "again": True})
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]
    assert rows(tmp_path)[2]["again"]


def test_resuming_writes_no_line_anew(tmp_path: Path) -> None:
    """Here none can be: a log that was emptied first, to be written again, would be lost to a kill in between."""
    log = opened(tmp_path, 0)
    for step in range(3):
        log.write({"step": step})
    with full_after(0):
        opened(tmp_path, 2)
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def test_a_line_is_on_the_disk_once_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint counts it and is synced itself: after a node goes down the count must not exceed the lines."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log = opened(tmp_path, 0)
    for step in range(2):
        log.write({"step": step})
        assert synced[step:] == [log.path.stat().st_size]


def test_a_tracker_that_fails_at_the_end_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """W&B without a network, TensorBoard on a full disk: the run has its result, and the other still ends."""
    log, ended = opened(tmp_path, 0), []

    def fails() -> None:
        raise ConnectionError("no network")

    log._tensorboard = SimpleNamespace(close=fails)
    log._wandb = SimpleNamespace(finish=lambda: ended.append("W&B"))
    log.close()
    assert ended == ["W&B"] and "WARNING TensorBoard" in capsys.readouterr().err
