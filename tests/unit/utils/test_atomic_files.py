"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tempo_megatron.utils.atomic_files import write_whole, written_whole
from tests.disk import full_after


@pytest.mark.parametrize("earlier", [[], ["earlier"]])
def test_a_failure_leaves_what_was_there_and_nothing_beside_it(earlier: list[str], tmp_path: Path) -> None:
    """A full disk, and a writer that fails when it has written all: neither half a file nor remains."""
    path = tmp_path / "figures.json"
    for text in earlier:
        write_whole(path, text)
    with pytest.raises(OSError), full_after(3):
        write_whole(path, "later")
    with pytest.raises(ZeroDivisionError), written_whole(path) as aside:
        aside.write_text("later")
        raise ZeroDivisionError
    assert [file.read_text() for file in tmp_path.iterdir()] == earlier


def test_a_file_has_its_name_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that goes down right after the renaming would otherwise leave an empty file in an earlier one's place."""
    path = tmp_path / "figures.json"
    write_whole(path, "earlier")
    synced: list[tuple[int, str]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.read_text())))
    write_whole(path, "later, é")
    assert synced == [(len("later, é".encode()), "earlier")]
    assert path.read_text(encoding="utf-8") == "later, é"
