"""A checkpoint's manifest and its pickles."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.checkpointing import integrity, safe_pickle


def test_no_byte_of_a_manifest_changes_unnoticed(tmp_path: Path) -> None:
    """Nothing else protects the manifest."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(1000))
    integrity.write_manifest(tmp_path, integrity.checksum_files(tmp_path, integrity.list_files(tmp_path)))
    (name,) = integrity.read_manifest(tmp_path)
    assert name == "a/file"
    path = tmp_path / integrity.MANIFEST_NAME
    written = path.read_bytes()
    for index in range(len(written)):
        for bit in (1, 32):
            path.write_bytes(written[:index] + bytes([written[index] ^ bit]) + written[index + 1 :])
            with pytest.raises(ConversionError, match="damaged"):
                integrity.read_manifest(tmp_path)
    path.write_bytes(written[:-1])
    with pytest.raises(ConversionError, match="damaged"):
        integrity.read_manifest(tmp_path)


class Shell:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.run, (["touch", str(self.path)],)


def save_object(directory: Path, value: object) -> None:
    save({"object": value}, storage_writer=FileSystemWriter(directory), no_dist=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_metadata_that_would_run_something_is_refused(tmp_path: Path) -> None:
    """The name is refused before it is called. torch's own reader would run it."""
    (tmp_path / safe_pickle.METADATA).write_bytes(pickle.dumps(Shell(tmp_path / "ran")))
    with pytest.raises(ConversionError, match=r"\.metadata: it names subprocess\.run"):
        safe_pickle.read_metadata(tmp_path)
    with safe_pickle.restricted(), pytest.raises(ConversionError, match=r"subprocess\.run"):
        FileSystemReader(tmp_path).read_metadata()
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_objects_that_would_run_something_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch unpickles a checkpoint's objects without limits by default. Plain objects are still read, and the
    environment is restored. megatron-core reads `common.pt`, which converted checkpoints have."""
    cpu.install()
    from megatron.core.dist_checkpointing.strategies.common import load_common

    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    save_object(tmp_path / "plain", (0.9, 0.999))
    save_object(tmp_path / "evil", Shell(tmp_path / "ran"))
    torch.save(Shell(tmp_path / "ran"), tmp_path / "evil" / "common.pt")
    read: dict[str, Any] = {"object": None}
    with safe_pickle.restricted():
        load(read, storage_reader=FileSystemReader(tmp_path / "plain"), no_dist=True)
        with pytest.raises(CheckpointException, match=r"[Ww]eights.only"):
            load({"object": None}, storage_reader=FileSystemReader(tmp_path / "evil"), no_dist=True)
        with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
            load_common(str(tmp_path / "evil"))
    assert read == {"object": (0.9, 0.999)}
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert FileSystemReader.read_metadata.__module__ == FileSystemReader.__module__
