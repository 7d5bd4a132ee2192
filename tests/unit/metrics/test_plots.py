"""Plots are drawn in a process of their own, whose end is not the run's."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron.config import Config
from tempo_megatron.metrics import plots
from tempo_megatron.metrics.plots import draw_in_subprocess
from tempo_megatron.training import run as run_module
from tempo_megatron.training.run import Run
from tempo_megatron.training.state import RunState

ROW = {"stage": "train", "iteration": 1, "evaluation/held_out/avg@4": 0.5, "critic/auroc": 0.7}


def test_a_run_is_drawn(tmp_path: Path) -> None:
    """By the command that a warning names."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    assert draw_in_subprocess(tmp_path) == ""
    plots_written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert plots_written == ["accuracy.png", "critic.png", "diversity.png", "reward.png"]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("kill -SEGV $$", "signal 11"),
        ("echo 'no such font' >&2; exit 3", "exit code 3\nno such font"),
    ],
)
def test_a_crash_is_a_warning_that_names_the_end(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that dies of a signal, and an error."""
    stand_in(tmp_path, program, monkeypatch)
    warning = draw_in_subprocess(tmp_path)
    assert warning.startswith(f"{tmp_path} lacks plots, which `python -m tempo_megatron.metrics.plots")
    assert warning.endswith(told)


def test_drawing_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks wait for it."""
    stand_in(tmp_path, "exec sleep 600", monkeypatch)
    monkeypatch.setattr(plots, "_LIMIT_SECONDS", 0.1)
    assert "more than 0 s" in draw_in_subprocess(tmp_path)


def stand_in(directory: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell program in the place of Python."""
    interpreter = directory / "python"
    interpreter.write_text(f"#!/bin/sh\n{program}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))


def test_drawing_imports_neither_torch_nor_the_trainer() -> None:
    """What crashed a run as it drew its plots was somewhere in a process that held everything."""
    code = (
        "import sys, tempo_megatron.metrics.plots; "
        "print('torch' in sys.modules, 'tempo_megatron.training.run' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout.split() == ["False", "False"]


def test_the_summary_is_there_before_anything_that_may_fail_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export, summary, then trackers and plots; the ranks leave however those end."""
    order: list[str] = []

    def note(what: str, result: Any = None) -> Any:
        return lambda *_: order.append(what) or result

    for name, result in {
        "export_run": None,
        "summary": {},
        "write_summary": "",
        "draw_in_subprocess": "warning",
    }.items():
        monkeypatch.setattr(run_module, name, note(name, result))
    monkeypatch.setattr(run_module.topology, "shutdown", note("shutdown"))
    fake: Any = SimpleNamespace(
        grader=SimpleNamespace(close=note("grader")),
        lifecycle=SimpleNamespace(saver=SimpleNamespace(wait=note("wait"))),
        config=Config(),
        directory=tmp_path,
        console=SimpleNamespace(is_first=True, warn=note("warn")),
        metrics_log=SimpleNamespace(close=note("trackers")),
        phase=contextlib.nullcontext,
        snapshot=RunState,
        _leave_directory=note("leave"),
    )
    Run.finish(fake)
    assert order[2:] == [
        "export_run",
        "summary",
        "write_summary",
        "trackers",
        "draw_in_subprocess",
        "warn",
        "leave",
        "shutdown",
    ]
