"""What a run tells its user: lines of the log and progress bars, of its first rank alone."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron.config import Config
from tempo_megatron.training.banner import banner, run_facts
from tempo_megatron.training.reporting import Console, RunLog
from tempo_megatron.training.state import RunState

PREFIX = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d rank 0"


@pytest.fixture(autouse=True)
def first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")


@pytest.fixture
def quiet() -> Any:
    """The level that TEMPO_LOG_LEVEL=WARNING sets when a process starts."""
    logger = logging.getLogger("tempo_megatron")
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


def show(is_first: bool) -> None:
    console = Console(is_first)
    for step in console.progress(range(2), "iterations"):
        console.say(f"step {step}")
    console.warn("an alarm")


def lines(text: str) -> list[str]:
    """The lines of a log, without the progress bar that is redrawn between them."""
    return [line for line in re.split(r"[\r\n]+", text) if re.match(r"\d{4}-", line)]


def test_the_first_rank_logs_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    """With time, rank and level, beside a bar on standard error; standard output is for the run's result."""
    show(is_first=True)
    printed = capsys.readouterr()
    first, second, third = lines(printed.err)
    assert re.fullmatch(f"{PREFIX} INFO step 0", first) and re.fullmatch(f"{PREFIX} INFO step 1", second)
    assert re.fullmatch(f"{PREFIX} WARNING an alarm", third)
    assert "iterations: 100%" in printed.err and not printed.out


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    show(is_first=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("quiet")
def test_a_level_above_info_silences_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither lines nor bars are left; a warning stays."""
    show(is_first=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING an alarm")


def test_an_iteration_has_one_line_and_an_alarm_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = []
    parts: Any = SimpleNamespace(take_usage=lambda: {"seconds/m_step": 1.0}, take_figures=dict, write=rows.append)
    log = RunLog(Config(), Console(is_first=True), RunState(iteration=3), parts, parts, parts)
    log.write("train", {"policy/reward": 0.25, "generation/exp_log_prob_difference_mean": 2.0}, 3)
    alarm, progress = lines(capsys.readouterr().err)
    assert " WARNING iteration 3: generator and trainer disagree about log-probs" in alarm
    assert progress.endswith(f" INFO iteration 3/{Config().loop.iterations}  policy/reward 0.250")
    assert len(rows) == 1


def test_rows_of_the_banner_keep_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Only its title has time, rank and level."""
    device = SimpleNamespace(type="cpu")
    topology: Any = SimpleNamespace(
        tensor_size=1, context_size=1, pipeline_size=1, data_size=2, expert_size=1, world_size=2, device=device
    )
    Console(is_first=True).say(banner(Config(), topology))
    title, *rows = capsys.readouterr().err.splitlines()
    assert re.match(f"{PREFIX} INFO ", title)
    assert "         layout  TP 1 x CP 1 x PP 1 x DP 2" in rows and len({row.index("  ", 15) for row in rows}) == 1


def test_facts_of_the_run_name_the_commit_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever directory it starts; an installed package has none."""
    monkeypatch.chdir(tmp_path)
    device = SimpleNamespace(type="cpu")
    topology: Any = SimpleNamespace(
        tensor_size=1, context_size=1, pipeline_size=1, data_size=2, expert_size=1, world_size=2, device=device
    )
    assert re.fullmatch(r"[0-9a-f]{12,}\+?|unknown", run_facts(Config(), topology)["commit"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_facts(Config(), topology)["commit"] == "unknown"


def test_timings_of_the_generator_have_the_prefix_of_timings() -> None:
    """What compares two runs leaves out `seconds/`; counts of the generator must be the same."""
    rows: list[dict[str, Any]] = []
    figures = {"requests": 3.0, "seconds/replica_idle": 0.25}
    parts: dict[str, Any] = {
        "residency": SimpleNamespace(take_usage=dict),
        "generator": SimpleNamespace(take_figures=lambda: figures),
        "writers": SimpleNamespace(write=rows.append),
    }
    log = RunLog(Config(), Console(is_first=False), RunState(), **parts)
    log.write("train", {}, 2)
    assert rows == [{"stage": "train", "iteration": 2, "generation/requests": 3.0, "seconds/replica_idle": 0.25}]
