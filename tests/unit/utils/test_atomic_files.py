"""Files that exist complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tempo_megatron.utils.atomic_files import atomic_path, write_text_atomically
from tests.disk import full_after


@pytest.mark.parametrize("earlier", [[], ["earlier"]])
def test_a_failure_keeps_the_earlier_file_and_leaves_no_other(earlier: list[str], tmp_path: Path) -> None:
    """A full disk, and a writer that fails after its last line, leave neither half a file nor a temporary one."""
    path = tmp_path / "figures.json"
    for text in earlier:
        write_text_atomically(path, text)
    with pytest.raises(OSError), full_after(3):
        write_text_atomically(path, "later")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("later")
        raise ZeroDivisionError
    assert [file.read_text() for file in tmp_path.iterdir()] == earlier


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sync, a node that crashes after the move could leave an empty file instead of the earlier one."""
    path = tmp_path / "figures.json"
    write_text_atomically(path, "earlier")
    synced: list[tuple[int, str]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.read_text())))
    write_text_atomically(path, "later, é")
    assert synced == [(len("later, é".encode()), "earlier")]
    assert path.read_text(encoding="utf-8") == "later, é"
