"""Time, rank and level stand before what a rank says; nothing that it says can end it."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from tempo_megatron.utils.logs import get_logger

logger = get_logger("tempo_megatron.tests")


def test_a_line_has_time_rank_and_level(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    logger.warning("a table:\n| a |")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d rank 3 WARNING a table:", first)
    assert second == "| a |"


def test_a_process_without_a_rank_names_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    logger.info("text")
    assert re.fullmatch(r"\S+ \S+ INFO text\n", capsys.readouterr().err)


def test_lines_stand_above_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, file=sys.stderr, mininterval=0) as bar:
        logger.info("text")
        bar.update()
    assert any(line.endswith("INFO text") for line in capsys.readouterr().err.splitlines())


def test_a_full_disk_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115  # closing it fails, too
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", full)
        logger.error("text")
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize(("level", "levels"), [("ERROR", ["ERROR"]), ("debug", ["DEBUG", "INFO", "ERROR"])])
def test_the_environment_sets_the_level(level: str, levels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _levels_written(level, monkeypatch) == levels


def test_an_unknown_level_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _levels_written("loud", monkeypatch) == ["WARNING", "INFO", "ERROR"]


def _levels_written(level: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TEMPO_LOG_LEVEL", level)
    monkeypatch.delenv("RANK", raising=False)
    program = (
        "from tempo_megatron.utils.logs import get_logger\n"
        "logger = get_logger('tempo_megatron.x')\n"
        "for say in (logger.debug, logger.info, logger.error): say('text')"
    )
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    return [line.split()[2] for line in written.splitlines()]


def test_other_libraries_loggers_are_left_alone() -> None:
    assert not any(type(handler).__module__.startswith("tempo_megatron") for handler in logging.getLogger().handlers)
