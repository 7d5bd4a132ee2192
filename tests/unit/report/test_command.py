"""`tempo report`, and the process in which a finished run makes its report: its end is not the run's."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tempo_megatron import cli
from tempo_megatron.config import Config
from tempo_megatron.report import command, watch
from tempo_megatron.report.command import ReportOptions, report_in_subprocess, report_runs
from tempo_megatron.report.reading import RunStatus
from tempo_megatron.training import run as run_module
from tempo_megatron.training.run import Run
from tempo_megatron.training.state import RunState
from tests.unit.report.run_copy import copy_run, new_run, train_rows, write_evaluation


def test_a_run_gets_its_report(tmp_path: Path) -> None:
    """By the process that the end of a run starts."""
    run = copy_run(tmp_path / "run")
    assert report_in_subprocess(run) == ""
    assert "Worse on unlabeled questions" in (run / "report.html").read_text()


def test_the_command_writes_one_run_several_runs_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, other = new_run(tmp_path / "run", train_rows(policy__reward=[0.1, 0.2])), new_run(tmp_path / "other")
    assert cli.main(["report", str(run), "--figures", "figures"]) == 0
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["policy-reward.png"]
    assert cli.main(["report", str(run), str(other)]) == 0
    assert cli.main(["report", str(run), str(other), "--out", "deep/er.html"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run}/report.html",
        "1 figure in figures",
        "report.html",
        "deep/er.html",
    ]
    assert (tmp_path / "report.html").read_text().count("<h3>") == (tmp_path / "deep/er.html").read_text().count("<h3>")


def test_what_cannot_be_shown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and nothing is written."""
    assert report_runs([tmp_path / "nothing"], ReportOptions()) == 2
    assert report_runs([tmp_path] * 5, ReportOptions()) == 2
    assert report_runs([tmp_path] * 2, ReportOptions(show_answers=True, watch=True)) == 2
    refusals = capsys.readouterr().err
    assert (
        "is no run directory" in refusals
        and "at most 4 runs" in refusals
        and "--show-answers" in refusals
        and "--watch is for one" in refusals
    )
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no path is printed as if it held one."""
    (tmp_path / "file").touch()
    assert report_runs([new_run(tmp_path / "run")], ReportOptions(out=tmp_path / "file" / "page.html")) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("tempo report:") and "Traceback" not in output.err


def test_a_watched_run_is_written_again_until_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And reloads itself until then. A run that was interrupted is watched further: it may be resumed."""
    run = new_run(tmp_path / "run", train_rows(policy__reward=[0.1]))
    pages: list[str] = []
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: (run / "interrupted").write_text("SIGTERM"),
        lambda: (run / "summary.json").write_text('{"iterations": 1}'),
    ]

    def sleep(seconds: float) -> None:
        pages.append((run / "report.html").read_text())
        changes.pop(0)()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert report_runs([run], ReportOptions(watch=True)) == 0
    pages.append((run / "report.html").read_text())
    statuses = [re.findall(r'class="chip (\w+)"', page) for page in pages]
    assert statuses == [["stopped"], ["stopped"], ["interrupted"], ["finished"]]
    assert ['http-equiv="refresh" content="30"' in page for page in pages] == [True, True, True, False]


def test_an_end_while_the_page_is_written_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes afterward, so nothing else would start another page."""
    run = new_run(tmp_path / "run")
    statuses = [RunStatus.running, RunStatus.finished]

    def write_page() -> RunStatus:
        (run / "summary.json").write_text("{}")
        return statuses.pop(0)

    monkeypatch.setattr(watch.time, "sleep", lambda _: pytest.fail("it waits for another change"))
    watch.watch_run(run, write_page)
    assert statuses == []


def test_control_c_ends_a_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    assert report_runs([new_run(tmp_path / "run")], ReportOptions(watch=True)) == 0


def test_hidden_answers_are_shown_only_on_request(tmp_path: Path) -> None:
    """The label firewall's last gate: a page that is sent around tells no answer of an unlabeled question."""
    data = tmp_path / "questions.jsonl"
    data.write_text(
        '{"prompt": "What is it?", "id": 7, "answer": "SECRET-42"}\n{"prompt": "And this?", "id": 8, "answer": null}\n'
    )
    run = new_run(tmp_path / "run", config=f"method: tempo\ndata: {{unlabeled: [{{path: {data}}}]}}\n")
    write_evaluation(run, 0, {"questions.jsonl:7": [0.0, 0.0], "questions.jsonl:8": [0.0]})
    write_evaluation(run, 1, {"questions.jsonl:7": [0.0, 0.0]})
    assert report_runs([run], ReportOptions()) == 0
    page = (run / "report.html").read_text()
    assert "response 1" in page and "SECRET-42" not in page
    assert report_runs([run], ReportOptions(show_answers=True)) == 0
    assert (run / "report.html").read_text() == page
    with_answers = (run / "report-with-answers.html").read_text()
    assert '"answer":"SECRET-42"' in with_answers and '"answer":"None"' not in with_answers


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
    warning = report_in_subprocess(tmp_path)
    assert warning.startswith(f"{tmp_path} has no report, which `tempo report")
    assert warning.endswith(told)


def test_a_report_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks wait for it."""
    stand_in(tmp_path, "exec sleep 600", monkeypatch)
    monkeypatch.setattr(command, "_LIMIT_SECONDS", 0.1)
    assert "more than 0 s" in report_in_subprocess(tmp_path)


def stand_in(directory: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell program in the place of Python."""
    interpreter = directory / "python"
    interpreter.write_text(f"#!/bin/sh\n{program}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))


def test_a_report_imports_neither_torch_nor_the_trainer() -> None:
    """What crashed a run as it drew its results was somewhere in a process that held everything."""
    code = (
        "import sys, tempo_megatron.report.command; "
        "print('torch' in sys.modules, 'tempo_megatron.training.run' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout.split() == ["False", "False"]


def test_the_summary_is_there_before_anything_that_may_fail_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export, summary, then trackers and report; the ranks leave however those end."""
    order: list[str] = []

    def note(what: str, result: Any = None) -> Any:
        return lambda *_: order.append(what) or result

    for name, result in {
        "export_run": None,
        "summary": {},
        "write_summary": "",
        "report_in_subprocess": "warning",
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
        "report_in_subprocess",
        "warn",
        "leave",
        "shutdown",
    ]
