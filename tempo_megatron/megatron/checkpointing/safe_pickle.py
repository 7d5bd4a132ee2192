"""Reads the pickles of a torch_dist checkpoint through lists of allowed names, because a pickle can run any code.

Pickles are `.metadata`, every object that is no tensor (some of them in a BytesIO), the `common.pt` of a converted
checkpoint, and the bytes in which Transformer Engine keeps the state of delayed scaling. They are read after their
checksums have matched. From the last ones only tensors and plain values are taken.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from tempo_megatron.conversion.errors import ConversionError

METADATA = ".metadata"
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ALLOW_EXTRA_STATE = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""Without it Transformer Engine 2.18 refuses every pickle of delayed scaling, its own included."""
_SCALING_TENSORS = ("scale_fwd", "amax_history_fwd", "scale_bwd", "amax_history_bwd")
_ALLOWED_IN_METADATA = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {
        "Size",
        *(str(kind).removeprefix("torch.") for kind in vars(torch).values() if type(kind) is torch.dtype),
    },
    "pathlib": {"PosixPath"},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED_IN_METADATA.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the metadata of a checkpoint never needs")
        return super().find_class(module, name)


def read_metadata(directory: Path) -> Metadata:
    """Returns the metadata of one role's directory. Raises ConversionError if it names anything not allowed."""
    path = directory / METADATA
    with path.open("rb") as file:
        try:
            metadata: Metadata = _MetadataUnpickler(file).load()
        except pickle.UnpicklingError as error:
            raise ConversionError(f"{path}: {error}; nothing was loaded from it") from None
    metadata.storage_meta = metadata.storage_meta or StorageMeta()
    return metadata


@contextlib.contextmanager
def restricted() -> Iterator[None]:
    """Restricts what torch.distributed.checkpoint unpickles inside the block.

    Metadata passes the list above, and objects pass torch's own list (`weights_only`) and BytesIO, because Transformer
    Engine keeps some state in one. The patch is global, because megatron-core creates its readers itself.
    """
    unrestricted = FileSystemReader.read_metadata
    FileSystemReader.read_metadata = lambda self, *_, **__: read_metadata(Path(self.path))  # type: ignore[method-assign]
    try:
        with _switched_on(_FORCE_WEIGHTS_ONLY), _safe_globals([io.BytesIO]):
            yield
    finally:
        FileSystemReader.read_metadata = unrestricted  # type: ignore[method-assign]


@contextlib.contextmanager
def allowed_extra_states() -> Iterator[None]:
    """Lets Transformer Engine unpickle modules' extra states inside the block: states of `rebuilt_scaling_state`."""
    with _switched_on(_ALLOW_EXTRA_STATE):
        yield


def rebuilt_scaling_state(name: str, state: bytes, recipe: Any) -> bytes:
    """Returns the state of delayed scaling of the module `name` in a new pickle, which has `recipe`.

    From the old pickle come tensors and plain values alone. Raises ConversionError where it holds anything else.
    """
    try:
        with _safe_globals([]):
            old = _ScalingUnpickler(io.BytesIO(state)).load()
        tensors = {key: old[key] for key in _SCALING_TENSORS if key in old}
        extra = old["extra_fp8_variables"]
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()) or not _is_plain(extra):
            raise pickle.UnpicklingError("its values are no tensors and plain values")
    except Exception as error:
        raise ConversionError(f"{name}: {error}; the state of delayed scaling was not loaded") from None
    return pickle.dumps({"recipe": recipe, **tensors, "extra_fp8_variables": extra})


class _Ignored:
    """Stands for an object that is not needed. A pickle can create it and give it a state, without any effect."""

    __slots__ = ()

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Takes nothing from the state."""


class _Builder:
    """Calls a function for a pickle, which cannot reach the function itself: a pickle may change its objects."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, _: object) -> None:
        """Takes nothing from the state."""


def _storage(data: bytes) -> torch.TypedStorage:
    storage = torch.load(io.BytesIO(data), weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise pickle.UnpicklingError(f"a tensor's storage is of type {type(storage).__name__}")
    return storage


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> torch.Tensor:
    tensor: torch.Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return tensor


class _ScalingUnpickler(pickle.Unpickler):
    """Creates nothing but plain values, tensors and `_Ignored` objects.

    A list of allowed names would not do: a pickle may also change the functions and arrays that it gets, and so run
    code.
    """

    _OBJECTS: ClassVar[dict[tuple[str, str], object]] = {
        ("collections", "OrderedDict"): _Ignored,  # a tensor's hooks
        ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"): _Ignored,
        ("megatron.core.safe_globals", "safe_load_from_bytes"): _Builder(_storage),
        ("torch._utils", "_rebuild_tensor_v2"): _Builder(_tensor),
        ("torch.storage", "_load_from_bytes"): _Builder(_storage),
        ("transformer_engine.common.recipe", "DelayedScaling"): _Ignored,
        ("transformer_engine.common.recipe", "Format"): _Ignored,
        ("transformer_engine.common.recipe", "MMParams"): _Ignored,
        ("transformer_engine.common.recipe", "_FormatHelper"): _Ignored,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._OBJECTS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._OBJECTS[module, name]


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


@contextlib.contextmanager
def _safe_globals(allowed: list[Any]) -> Iterator[None]:
    """Lets `weights_only` take torch's own list and `allowed` inside the block, and nothing else.

    Megatron-core adds numpy's arrays to the list, through which a pickle can write to any memory.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@contextlib.contextmanager
def _switched_on(variable: str) -> Iterator[None]:
    """Sets an environment variable to 1 inside the block, and restores it."""
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
