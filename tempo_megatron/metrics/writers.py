"""Writers of metrics: metrics.jsonl always, and the trackers that the settings ask for (`trackers.py`)."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

from tempo_megatron.config import LoggingConfig
from tempo_megatron.metrics.trackers import numbers_of, open_trackers
from tempo_megatron.utils.heartbeat import Pace, expect_pace
from tempo_megatron.utils.logs import get_logger

logger = get_logger(__name__)


class MetricsLog:
    """The writers of a run directory, which one rank has. A checkpoint keeps `lines`, the length of the log, so that a
    resumed run can cut the log back to it."""

    def __init__(self, run_dir: Path, config: LoggingConfig, lines: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        _cut(self.path, lines)
        self.lines = lines
        self._trackers = open_trackers(run_dir, config, lines)

    @expect_pace(Pace.untimed)
    def write(self, row: dict[str, Any]) -> None:
        """Writes a line of metrics.jsonl, and its numbers to the trackers with the line's number as step.

        The line is on the disk when this returns, since a checkpoint that counts it may outlive the node. A tracker
        that fails is left out from then on, with a warning.
        """
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        numbers = numbers_of(row)
        for tracker in list(self._trackers):
            try:
                tracker.log(numbers, self.lines)
            except Exception as error:  # trackers raise what they like
                self._trackers.remove(tracker)
                logger.warning(f"{tracker.name} logs no further: {error!r}. metrics.jsonl has every metric")
        self.lines += 1

    def close(self) -> None:
        """Closes the trackers. Their errors are warnings, because metrics.jsonl has every metric."""
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                logger.warning(f"{tracker.name} did not take the end of the run: {error!r}")


def _cut(path: Path, lines: int) -> None:
    """Cuts a log back to its first lines in place, so that a process killed meanwhile loses none of them."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(sum(map(len, islice(file, lines))))
