"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`, in place of an earlier file. A failure leaves what was there before, and
    nothing beside it."""
    aside = path.with_name(f".{path.name}.aside")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())  # before it has its name: a node that goes down may lose what was not written out
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole once it has its name."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")
