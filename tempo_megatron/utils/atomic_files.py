"""Files that exist complete or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and move what was written there to `path` at the end, over an earlier file.

    After a failure `path` is as it was before, and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.aside")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # before the move: a node that crashes may lose unsynced contents
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8. The file appears at `path` only once it is complete."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
