"""`tempo report`: writes the page of one run, or of several runs side by side.

usage: python -m tempo_megatron.report.command RUN_DIR    (what a finished run starts)
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tempo_megatron.report.figures import comparison_sections, sections
from tempo_megatron.report.page import comparison_page, run_page
from tempo_megatron.report.panels import MAXIMUM_LINES
from tempo_megatron.report.png import write_figures
from tempo_megatron.report.reading import RunRecord, RunStatus, read_run, read_runs
from tempo_megatron.report.watch import RELOAD_SECONDS, watch_run
from tempo_megatron.report.words import plural
from tempo_megatron.utils.atomic_files import write_text_atomically
from tempo_megatron.utils.terminal import refuse

REPORT_NAME = "report.html"
"""The file in a run directory that the report is written to."""
_WITH_ANSWERS_NAME = "report-with-answers.html"
"""The same for a report that shows answers: it does not replace the one that may be sent around."""
_LIMIT_SECONDS = 300.0
"""A report may take this long. It takes seconds, but a busy machine may need minutes."""


@dataclass(frozen=True)
class ReportOptions:
    """The options of `tempo report`, as `tempo report --help` describes them."""

    out: Path | None = None
    figures: Path | None = None
    show_answers: bool = False
    watch: bool = False


def report_runs(runs: Sequence[Path], options: ReportOptions) -> int:
    """Write the report of one run as RUN/report.html, or of several as report.html here.

    Returns 0, or 2 for a directory that is no run, too many runs, options that do not go together, answers that
    cannot be read, or a page that cannot be written.
    """
    problems = []
    if len(runs) > MAXIMUM_LINES:
        problems.append(f"at most {MAXIMUM_LINES} runs: more lines in a panel cannot be told apart")
    if len(runs) > 1 and options.show_answers:
        problems.append("--show-answers is for one run: a report of several shows no questions")
    if len(runs) > 1 and options.watch:
        problems.append("--watch is for one run")
    if problems:
        return refuse("tempo report", problems)
    try:
        records = read_runs(runs)
        answers = _hidden_answers(records[0]) if options.show_answers else None
    except (FileNotFoundError, ValueError) as error:
        return refuse("tempo report", error)
    name = _WITH_ANSWERS_NAME if options.show_answers else REPORT_NAME
    path = options.out or (runs[0] / name if len(runs) == 1 else Path(name))
    try:
        _write(runs, records, path, answers, options)
    except OSError as error:
        return refuse("tempo report", error)
    return 0


def _write(
    runs: Sequence[Path],
    records: Sequence[RunRecord],
    path: Path,
    answers: Mapping[str, str] | None,
    options: ReportOptions,
) -> None:
    """Write the page, and the figures if they are wanted, and print where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.watch:
        print(path, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            watch_run(runs[0], lambda: _write_watched(runs[0], path, answers))
    else:
        page = run_page(records[0], answers) if len(records) == 1 else comparison_page(records)
        write_text_atomically(path, page)
        print(path, flush=True)
    if options.figures:
        records = read_runs(runs)
        panels = sections(records[0]) if len(records) == 1 else comparison_sections(records)
        print(f"{plural(len(write_figures(panels, options.figures)), 'figure')} in {options.figures}")


def _write_watched(run: Path, path: Path, answers: Mapping[str, str] | None) -> RunStatus:
    """Write the page of a run as it is now, which reloads itself until the run is finished; return its status."""
    record = read_run(run)
    reload_seconds = None if record.status is RunStatus.finished else RELOAD_SECONDS
    write_text_atomically(path, run_page(record, answers, reload_seconds=reload_seconds))
    return record.status


def report_in_subprocess(run_dir: Path) -> str:
    """Write RUN/report.html in a process of its own; return a warning, empty on success.

    By then the run has its result: an error, a signal or a timeout of the report must not fail the run.
    """
    command = [sys.executable, "-X", "faulthandler", "-m", __name__, str(run_dir)]
    warning = f"{run_dir} has no report, which `tempo report {run_dir}` makes"
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{warning}: it took more than {_LIMIT_SECONDS:.0f} s"
    except OSError as error:
        return f"{warning}: it did not start: {error}"
    if not process.returncode:
        return ""
    end = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return f"{warning}: it ended with {end}\n{process.stderr}".rstrip()


def _hidden_answers(record: RunRecord) -> dict[str, str]:
    """Return the answers of the evaluated questions by id, from the data that the run's settings name.

    Raises DataError, a ValueError, where the data cannot be read.
    """
    from tempo_megatron.config import load_config
    from tempo_megatron.data.sources import read_rows

    data = load_config(record.directory / "config.yaml").data
    rows = read_rows([*data.unlabeled, *data.held_out], labeled=False)
    return {row.id: str(row.answer["answer"]) for row in rows if row.answer and row.answer.get("answer") is not None}


if __name__ == "__main__":
    sys.exit(report_runs([Path(sys.argv[1])], ReportOptions()))
