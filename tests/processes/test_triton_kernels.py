"""The Triton kernels on CPUs. Triton decides when it is imported whether it interprets, hence the other process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")


def test_kernels_compute_their_formulas() -> None:
    """The tests of the other file say what each protects."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stdout
