"""A checkpoint's manifest and its pickles."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tempo_megatron.config import Fp8
from tempo_megatron.conversion.errors import ConversionError
from tempo_megatron.megatron import cpu
from tempo_megatron.megatron.checkpointing import dist_checkpoint, integrity, safe_pickle
from tempo_megatron.training.models import Models


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
    tensors = {"scale_fwd": torch.tensor([2.0, 4.0, 8.0]), "scale_bwd": torch.ones(2)}
    histories = {f"amax_history_{way}": torch.arange(12.0).reshape(4, 3).t() for way in ("fwd", "bwd")}
    extra = {"fp8_checkpoint": True, "num_gemms": 1, "fp8_max_fwd": 448.0, "local_recipes": [recipe]}
    return {"recipe": recipe, **tensors, **histories, "extra_fp8_variables": extra}


def test_the_state_of_delayed_scaling_is_pickled_anew_with_the_models_recipe(recipe: Any) -> None:
    """Tensors and numbers come from the file, and recipes do not."""
    recipe.margin = 3
    for protocol in (4, 5):
        state = pickle.dumps(scaling_state(recipe), protocol)
        rebuilt = pickle.loads(safe_pickle.rebuilt_scaling_state("a._extra_state", state, "the model's recipe"))
        expected = scaling_state("the model's recipe")
        assert rebuilt.keys() == expected.keys() and rebuilt["recipe"] == "the model's recipe"
        assert all(
            torch.equal(rebuilt[key], expected[key]) for key in expected if isinstance(expected[key], torch.Tensor)
        )
        assert rebuilt["extra_fp8_variables"] == {"fp8_checkpoint": True, "num_gemms": 1, "fp8_max_fwd": 448.0}


def test_a_module_without_scales_has_no_state(recipe: object) -> None:
    """Attention in higher precision has recipes alone, which it sets in each forward pass."""
    state = {"recipe": recipe, "extra_fp8_variables": {"local_recipes": [recipe]}}
    assert safe_pickle.rebuilt_scaling_state("a", pickle.dumps(state), recipe) == b""


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


class Reference(torch.nn.Sequential):
    """A chunk whose one layer has a scale, as megatron-core shards it."""

    def __init__(self, scale: float, recipe: object) -> None:
        super().__init__(Delayed())
        self.config = SimpleNamespace(fp8="hybrid", fp8_recipe="delayed")
        self.pickled = pickle.dumps({**scaling_state(recipe), "scale_fwd": torch.full((3,), scale)})

    def sharded_state_dict(self, metadata: dict[str, Any]) -> dict[str, Any]:
        state = torch.frombuffer(bytearray(self.pickled), dtype=torch.uint8)
        weights = {f"0.{name}": part for name, part in self[0].named_parameters()}
        return {
            **{name: ShardedTensor.from_rank_offsets(name, part.detach()) for name, part in weights.items()},
            "0._extra_state": ShardedObject("0._extra_state", state, (1,), (0,)),
        }

    def model(self) -> Any:
        """Return the chunk as a model whose weights have a directory of their own."""
        onloaded = contextlib.nullcontext
        return SimpleNamespace(
            chunks=[self], optimizer=None, is_saved_elsewhere=True, onloaded=lambda *kinds, changes=False: onloaded()
        )


def test_a_checkpoint_has_the_references_scales_and_not_its_weights(
    recipe: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the scales of a new module the reference scores otherwise: a resumed run had another KL on a GPU."""
    from megatron.core import fp8_utils

    monkeypatch.setattr(fp8_utils, "get_fp8_recipe", lambda config: config.fp8_recipe)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        saved, resumed = Reference(16.0, recipe), Reference(1.0, recipe)
        weight = resumed[0].weight.detach().clone()
        checkpoint = tmp_path / "iteration-000002"
        models = {"reference": saved.model()}
        dist_checkpoint.prepare_directories(checkpoint, models)
        dist_checkpoint.write(checkpoint, dist_checkpoint.capture_models(checkpoint, models, copied=False))
        dist_checkpoint.load_checkpoint(checkpoint, {"reference": resumed.model()})
        names = safe_pickle.read_metadata(checkpoint / "reference").state_dict_metadata
    finally:
        dist.destroy_process_group()
    assert resumed[0].loaded["scale_fwd"].tolist() == [16.0, 16.0, 16.0]
    assert torch.equal(resumed[0].weight, weight) and not torch.equal(weight, saved[0].weight)
    assert any("_extra_state" in name for name in names) and not any("weight" in name for name in names)


@pytest.mark.parametrize(("fp8", "names"), [("delayed", ["policy", "reference"]), ("tensorwise", ["policy"])])
def test_checkpoints_of_delayed_scaling_include_the_reference(fp8: str, names: list[str]) -> None:
    """Its scales follow what it has scored so far. Other recipes have no scales to keep."""
    models: Any = object.__new__(Models)
    models._config = SimpleNamespace(model=SimpleNamespace(fp8=Fp8(fp8)))
    models.policy, models.reference = SimpleNamespace(), SimpleNamespace()
    assert list(models.saved) == names


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
        (Hidden({"a": 1}), "another object in a tensor's place"),
    ):
        state = pickle.dumps({**scaling_state(recipe), "scale_fwd": value})
        with pytest.raises(ConversionError, match=r"^layers\.0\._extra_state: "):
            safe_pickle.rebuilt_scaling_state("layers.0._extra_state", state, recipe)
        tensor = TensorOf(value) if isinstance(value, Hidden) else value
        with pytest.raises(ConversionError, match=rf"^a: .*({reason}|storage is of type)"):
            safe_pickle.rebuilt_scaling_state("a", pickle.dumps({**scaling_state(recipe), "scale_bwd": tensor}), recipe)
    assert not (tmp_path / "ran").exists()


class TensorOf:
    """Pickles as a tensor with a storage of another kind."""

    def __init__(self, storage: object) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, (3,), (1,), False, OrderedDict())


def test_an_extra_state_with_other_contents_is_refused(recipe: object) -> None:
    """A size beyond the storage would fill the scales with memory that nobody wrote."""
    state = scaling_state(recipe)
    storage = torch.ones(4).storage()
    numbers = {**state["extra_fp8_variables"], "num_gemms": [1]}
    without_one = {key: value for key, value in state.items() if key != "scale_bwd"}
    for changed in (
        [],
        without_one,
        {**state, "scale_fwd": 1.0},
        {**state, "extra_fp8_variables": numbers},
        {**state, "scale_fwd": Sized(storage, (2000,), (1,))},
        {**state, "scale_fwd": Sized(storage, (10**12,), (0,))},
    ):
        with pytest.raises(ConversionError, match=r"^a: "):
            safe_pickle.rebuilt_scaling_state("a", pickle.dumps(changed), recipe)
    with pytest.raises(ConversionError, match=r"^a: "):
        safe_pickle.rebuilt_scaling_state("a", pickle.dumps(state)[:-20], recipe)


class Sized:
    """Pickles as a tensor of a given size."""

    def __init__(self, storage: object, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments = (storage, 0, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


SETS_AN_ATTRIBUTE = b"N}X\x04\x00\x00\x00evilK\x01s\x86b0"
"""The opcodes that give the object on top of a pickle's stack an attribute `evil`, as a state in slots."""


def test_a_pickle_cannot_change_the_classes_and_functions_that_it_gets(tmp_path: Path, recipe: object) -> None:
    """An attribute of PosixPath would send every later write of the process to another place."""
    state = pickle.dumps(scaling_state(recipe), protocol=3)
    for name in (b"ctorch.storage\n_load_from_bytes\n", b"ctransformer_engine.common.recipe\nFormat\n"):
        with pytest.raises(ConversionError, match="it changes an object of type"):
            safe_pickle.rebuilt_scaling_state("a", state[:2] + name + SETS_AN_ATTRIBUTE + state[2:], recipe)
    for name in (b"cpathlib\nPosixPath\n", b"cpathlib\nPosixPath\n)R", b"ctorch.serialization\n_get_layout\n"):
        (tmp_path / safe_pickle.METADATA).write_bytes(b"\x80\x03" + name + SETS_AN_ATTRIBUTE + b"N.")
        with pytest.raises(ConversionError, match="it changes an object of type"):
            safe_pickle.read_metadata(tmp_path)
    assert not hasattr(Path(), "evil") and not hasattr(torch.serialization._get_layout, "evil")


@pytest.mark.parametrize("fp8", [None, "hybrid"])
def test_what_is_no_plain_tensor_is_no_extra_state(fp8: str | None) -> None:
    """Transformer Engine unpickles a BytesIO without limits, and a tensor may have attributes in place of methods."""
    chunk = torch.nn.Sequential(Delayed())
    chunk.config = SimpleNamespace(fp8=fp8, fp8_recipe="delayed")  # type: ignore[assignment]
    with pytest.raises(ConversionError, match=r"^0\._extra_state: an extra state of type BytesIO"):
        dist_checkpoint.load_chunk(chunk, {**chunk.state_dict(), "0._extra_state": io.BytesIO(b"x")})
    disguised = torch.frombuffer(bytearray(b"no pickle"), dtype=torch.uint8)
    disguised.numel = lambda: 0  # type: ignore[method-assign]
    if fp8:
        with pytest.raises(ConversionError, match="the state of delayed scaling was not loaded"):
            dist_checkpoint.load_chunk(chunk, {**chunk.state_dict(), "0._extra_state": disguised})
    else:
        dist_checkpoint.load_chunk(chunk, {**chunk.state_dict(), "0._extra_state": disguised})
        assert chunk[0].loaded is None


def test_the_list_of_safe_objects_is_restored() -> None:
    before = set(torch.serialization.get_safe_globals())
    with safe_pickle.restricted():
        assert not torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == before
