"""A checkpoint's manifest and its pickles."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.checkpointing import dist_checkpoint, integrity, safe_pickle


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
    cpu.install()
    name = "megatron.core.extensions.transformer_engine"
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    kind = type("TEDelayedScaling", (), {"__module__": name})
    monkeypatch.setattr(module, kind.__name__, kind, raising=False)
    return kind()


def scaling_state(recipe: object) -> dict[str, Any]:
    """Return what Transformer Engine pickles for a module."""
    tensors = {"scale_fwd": torch.tensor([2.0, 4.0, 8.0]), "amax_history_bwd": torch.arange(6.0).reshape(3, 2)}
    return {"recipe": recipe, **tensors, "extra_fp8_variables": {"fp8_max": (448.0, 57344.0), "num_gemms": 1}}


def test_the_state_of_delayed_scaling_is_pickled_anew_with_the_models_recipe(recipe: Any) -> None:
    """Tensors and plain values come from the file, and the recipe does not."""
    recipe.margin = 3
    state = pickle.dumps(scaling_state(recipe))
    rebuilt = pickle.loads(safe_pickle.rebuilt_scaling_state("a._extra_state", state, "the model's recipe"))
    expected = scaling_state("the model's recipe")
    assert rebuilt.keys() == expected.keys()
    assert all(torch.equal(rebuilt[key], expected[key]) for key in ("scale_fwd", "amax_history_bwd"))
    assert rebuilt["recipe"] == expected["recipe"]
    assert rebuilt["extra_fp8_variables"] == expected["extra_fp8_variables"]


class Delayed(torch.nn.Linear):
    """Keeps state as Transformer Engine's modules do, and refuses pickles as they do."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.loaded: Any = None

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        if state.numel():
            assert os.environ.get("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE") == "1"
            self.loaded = pickle.loads(state.numpy().tobytes())


@pytest.mark.parametrize(("fp8_recipe", "is_loaded"), [("delayed", True), ("tensorwise", False)])
def test_a_model_with_delayed_scaling_loads_its_scales(
    fp8_recipe: str, is_loaded: bool, recipe: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformer Engine 2.18 refuses the pickles otherwise: a run with model.fp8=delayed could not resume. Other
    models have no use for scales."""
    from megatron.core import fp8_utils

    monkeypatch.setattr(fp8_utils, "get_fp8_recipe", lambda config: config.fp8_recipe)
    monkeypatch.setenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", "0")
    layer, chunk = Delayed(), torch.nn.Sequential()
    chunk.append(layer)
    chunk.config = SimpleNamespace(fp8="hybrid", fp8_recipe=fp8_recipe)  # type: ignore[assignment]
    pickled = torch.frombuffer(bytearray(pickle.dumps(scaling_state(recipe))), dtype=torch.uint8)
    dist_checkpoint.load_chunk(chunk, {**chunk.state_dict(), "0._extra_state": pickled})
    if is_loaded:
        assert layer.loaded["recipe"] == "delayed" and layer.loaded["scale_fwd"].tolist() == [2.0, 4.0, 8.0]
    else:
        assert layer.loaded is None
    assert os.environ["NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"] == "0"


class Hidden:
    """Pickles as a tensor's storage with other contents: the names that are seen from outside are the usual ones."""

    def __init__(self, contents: object) -> None:
        self.contents = contents

    def __reduce__(self) -> tuple[Any, ...]:
        file = io.BytesIO()
        torch.save(self.contents, file)
        return torch.storage._load_from_bytes, (file.getvalue(),)


def test_an_extra_state_that_would_run_something_is_refused(tmp_path: Path, recipe: object) -> None:
    """megatron-core lets numpy's arrays pass `weights_only`. A pickle can write to any memory through them."""
    shell = Shell(tmp_path / "ran")
    for value, reason in (
        (shell, r"it names subprocess\.run"),
        (np.zeros(3), r"it names numpy"),
        (Hidden(shell), r"[Ww]eights.only"),
        (Hidden(np.zeros(3)), r"[Ww]eights.only"),
        (Hidden({"a": 1}), "a tensor's storage is of type dict"),
    ):
        for key in ("recipe", "scale_fwd", "extra_fp8_variables"):
            state = pickle.dumps({**scaling_state(recipe), key: value})
            with pytest.raises(ConversionError, match=rf"^layers\.0\._extra_state: .*{reason}"):
                safe_pickle.rebuilt_scaling_state("layers.0._extra_state", state, recipe)
    assert not (tmp_path / "ran").exists()


def test_an_extra_state_with_other_contents_is_refused(recipe: object) -> None:
    state = scaling_state(recipe)
    for changed in ([], {**state, "scale_fwd": 1.0}, {**state, "extra_fp8_variables": {"a": torch.ones(1)}}):
        with pytest.raises(ConversionError, match=r"^a: "):
            safe_pickle.rebuilt_scaling_state("a", pickle.dumps(changed), recipe)
    with pytest.raises(ConversionError, match=r"^a: "):
        safe_pickle.rebuilt_scaling_state("a", pickle.dumps(state)[:-20], recipe)


def test_a_pickle_cannot_change_the_functions_that_it_gets(recipe: object) -> None:
    """The opcode BUILD would set a function's defaults, and the next call without arguments would unpickle them."""
    function = b"ctorch.storage\n_load_from_bytes\n"
    build = function + b"N}X\x0c\x00\x00\x00__defaults__C\x01a\x85s\x86b0"
    state = pickle.dumps(scaling_state(recipe), protocol=3)
    before = torch.storage._load_from_bytes.__defaults__
    safe_pickle.rebuilt_scaling_state("a", state[:2] + build + state[2:], recipe)
    assert torch.storage._load_from_bytes.__defaults__ == before


def test_the_list_of_safe_objects_is_restored() -> None:
    before = set(torch.serialization.get_safe_globals())
    with safe_pickle.restricted():
        assert set(torch.serialization.get_safe_globals()) == {io.BytesIO}
    assert set(torch.serialization.get_safe_globals()) == before
