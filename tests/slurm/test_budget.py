"""The time that the tests of this directory share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SHARING = """
from tests.slurm import conftest
from tests.slurm.conftest import durations, within_budget

conftest.BUDGET_SECONDS = 0.5
"""
SLEEPING = """
import time

def test_one(): time.sleep(0.3)
def test_that_goes_past(): time.sleep(0.3)
def test_after_it(): pass
"""


def test_tests_that_take_too_long_together_fail(tmp_path: Path) -> None:
    """No test alone is slow, and nobody would see the sum grow."""
    (tmp_path / "conftest.py").write_text(SHARING)
    (tmp_path / "test_sleeping.py").write_text(SLEEPING)
    made = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "3 passed, 2 errors" in made.stdout, made.stdout
    assert "make one shorter" in made.stdout
