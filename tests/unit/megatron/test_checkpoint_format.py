"""A checkpoint's manifest and its pickles."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
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


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> object:
    """Return an object that is pickled under the name of megatron-core's recipe, whose needs this machine may lack."""
    name = "megatron.core.extensions.transformer_engine"
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    kind = type("TEDelayedScaling", (), {"__module__": name})
    monkeypatch.setattr(module, kind.__name__, kind, raising=False)
    return kind()


def pickled(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def test_the_state_of_delayed_scaling_may_be_unpickled_inside_the_block_alone(
    recipe: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformer Engine 2.18 refuses it otherwise: a run with model.fp8=delayed could not resume."""
    cpu.install()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", "0")
    state = {"recipe": recipe, "scale_fwd": torch.ones(3), "extra_fp8_variables": {"fp8_max": (448.0, 57344.0)}}
    extra_states = {"a._extra_state": pickled(state), "b._extra_state": torch.empty(0, dtype=torch.uint8)}
    with safe_pickle.allowed_extra_states({**extra_states, "c._extra_state": None}):
        assert os.environ["NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"] == "1"
        loaded = pickle.loads(extra_states["a._extra_state"].numpy().tobytes())
        assert torch.equal(loaded["scale_fwd"], torch.ones(3))
    assert os.environ["NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"] == "0"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class HiddenShell:
    """Pickles as a tensor whose bytes run a command: the names that are seen from outside are allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        file = io.BytesIO()
        torch.save(Shell(self.path), file)
        return torch.storage._load_from_bytes, (file.getvalue(),)


@pytest.mark.parametrize(("shell", "reason"), [(Shell, r"subprocess\.run"), (HiddenShell, r"[Ww]eights.only")])
def test_an_extra_state_that_would_run_something_is_refused(
    shell: type[Shell] | type[HiddenShell], reason: str, tmp_path: Path
) -> None:
    cpu.install()
    states = {"layers.0.linear_fc1._extra_state": pickled({"recipe": shell(tmp_path / "ran")})}
    with (
        pytest.raises(ConversionError, match=rf"^layers\.0\.linear_fc1\._extra_state: .*{reason}"),
        safe_pickle.allowed_extra_states(states),
    ):
        pytest.fail("the block is not entered")
    assert not (tmp_path / "ran").exists()
