"""The report in a real browser: curves are drawn, the table is filled, nothing fails, and no text of a run is run.

Chromium prints the page as its scripts have left it. Without Chromium these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tempo_megatron.report.page import comparison_page, run_page
from tempo_megatron.report.reading import read_run
from tests.unit.report.run_copy import copy_run, new_run, write_evaluation

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


def rendered(page: str, directory: Path) -> tuple[str, list[str]]:
    """Return the page's elements after its scripts have run, without the scripts, and the console's errors."""
    path = directory / "report.html"
    path.write_text(page)
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [
        f"--user-data-dir={directory / 'profile'}",
        "--window-size=1400,900",
        "--virtual-time-budget=10000",
    ]
    process = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    elements = re.sub(r"<(script|style)([^>]*)>.*?</\1>", "", process.stdout, flags=re.DOTALL)
    return elements, [line for line in process.stderr.splitlines() if "CONSOLE" in line]


def test_curves_and_questions_are_drawn(tmp_path: Path) -> None:
    elements, errors = rendered(run_page(read_run(copy_run(tmp_path / "demo"))), tmp_path)
    assert errors == []
    panels = len(re.findall(r'class="plot[ "]', elements))
    assert panels > 20 and elements.count('data-drawn="yes"') == panels
    assert elements.count('class="question-row"') == 60
    assert "60 of 60 questions" in elements and '<svg class="spark"' in elements
    assert [label for label in ("gained", "lost", "never solved") if f">{label}</option>" in elements]


def test_curves_of_two_runs_are_drawn(tmp_path: Path) -> None:
    record = read_run(copy_run(tmp_path / "demo"))
    elements, errors = rendered(comparison_page([record, record]), tmp_path)
    assert errors == []
    assert elements.count('data-drawn="yes"') == len(re.findall(r'class="plot[ "]', elements)) > 30


def test_no_text_of_a_run_is_run(tmp_path: Path) -> None:
    """Neither as part of the page nor by the script that fills the table."""
    hostile = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    run = new_run(tmp_path / "run")
    for iteration in (0, 1):
        write_evaluation(run, iteration, {hostile: [0.0]}, response=hostile)
    (run / "interrupted").write_text(hostile)
    elements, errors = rendered(run_page(read_run(run)), tmp_path)
    assert errors == []
    assert "<title>pwned" not in elements and "<img" not in elements
    assert elements.count("&lt;img src=x") >= 2  # in the sentence and in the table
