"""What ranks say: lines with time, rank and level on standard error.

A module asks once, `logger = get_logger(__name__)`, and says `logger.info(...)`. Results of a command (tables, paths,
a run's summary) are printed to standard output instead, so that a pipe gets nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any

LEVEL_VARIABLE = "TEMPO_LOG_LEVEL"
"""This environment variable names the lowest level that is written: DEBUG, INFO (the default), WARNING or ERROR."""
_PACKAGES = ("tempo_megatron", "checkpoints_convert")


class _RankFormatter(logging.Formatter):
    """Puts time, rank and level before a message: `2026-11-29 22:44:01 rank 0 INFO iteration 1/8`.

    A launcher sets RANK; a process without it has no rank. Further lines of a message have no prefix, so that tables
    and tracebacks keep their columns.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(rank)s%(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        rank = os.environ.get("RANK")
        record.rank = f"rank {rank} " if rank else ""
        return super().format(record)


class _StandardErrorHandler(logging.Handler):
    """Writes to standard error, above the progress bars that are shown.

    A write that fails (a full disk, a closed pipe) is dropped: a process that ends must not fail at its last words.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            line = self.format(record)
            bars: Any = sys.modules.get("tqdm.std")
            if bars and getattr(bars.tqdm, "_instances", ()):
                bars.tqdm.write(line, file=sys.stderr)
            else:
                sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of this project, given the module's `__name__`."""
    return logging.getLogger(name)


def shows_progress() -> bool:
    """Whether the level lets progress be shown: lines of level INFO, and progress bars."""
    return logging.getLogger(_PACKAGES[0]).isEnabledFor(logging.INFO)


def _install_handler() -> None:
    """Give the project's loggers their only handler and the level of TEMPO_LOG_LEVEL. Other libraries' loggers, vLLM's
    among them, stay as those libraries set them up."""
    handler = _StandardErrorHandler()
    handler.setFormatter(_RankFormatter())
    name = os.environ.get(LEVEL_VARIABLE, "INFO").upper()
    level = logging.getLevelNamesMapping().get(name)
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if level is None else level)
    if level is None:
        logging.getLogger(_PACKAGES[0]).warning(f"{LEVEL_VARIABLE}: {name} is no level; INFO is used")


_install_handler()
