"""`tempo report --watch`: rewrites the page of a run while the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tempo_megatron.report.reading import RunStatus, holds_fresh_lock

RELOAD_SECONDS = 30
"""The page reloads itself this often while its run goes on."""
_POLL_SECONDS = 5.0
_FILES = ("metrics.jsonl", "summary.json", "interrupted", "config.yaml")
"""Files whose change means that there is something new to show."""


def watch_run(run: Path, write_page: Callable[[], RunStatus]) -> None:
    """Call `write_page` at once and whenever the run has something new, until it returns that the run is finished.

    A run that was interrupted or has crashed is watched further, because the same command resumes it.
    """
    seen = _state(run)  # before the page: what happens while it is written is drawn next
    while write_page() is not RunStatus.finished:
        while _state(run) == seen:
            time.sleep(_POLL_SECONDS)
        seen = _state(run)


def _state(run: Path) -> tuple[bool, list[int]]:
    """Return whether the run is in progress, and the times of its files; 0 for one that does not exist."""
    paths = [run / name for name in _FILES]
    return holds_fresh_lock(run), [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
