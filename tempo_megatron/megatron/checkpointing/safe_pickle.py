"""Reads the pickles of a torch_dist checkpoint through lists of allowed names, because a pickle can run any code.

Pickles are `.metadata`, every object that is no tensor, the `common.pt` of a converted checkpoint, and the bytes in
which Transformer Engine keeps the state of delayed scaling. They are read after their checksums have matched. From the
last ones only tensors and numbers are taken.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from tempo_megatron.conversion.errors import ConversionError

METADATA = ".metadata"
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ALLOW_EXTRA_STATE = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""Without it Transformer Engine 2.18 refuses every pickle of delayed scaling, its own included."""
_SCALING_TENSORS = ("scale_fwd", "amax_history_fwd", "scale_bwd", "amax_history_bwd")
_SCALING_NUMBERS = ("fp8_checkpoint", "num_gemms", "fp8_max_fwd", "fp8_max_bwd")
"""What a module does not set itself before its next forward pass."""
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


class _StrictUnpickler(pickle._Unpickler, ABC):
    """Unpickles names of a list alone, and gives a state only to objects that may have one.

    The names alone do not make a pickle safe: it can also change the classes and functions that it gets. This is the
    unpickler in Python, whose opcodes can be checked. A memo index cannot make it allocate memory either.
    """

    @abstractmethod
    def find_class(self, module: str, name: str) -> Any:
        """Returns what the name stands for. Raises UnpicklingError for a name that is not on the list."""

    @abstractmethod
    def may_get_state(self, kind: type) -> bool:
        """Returns whether a pickle may set attributes of objects of this type."""

    def load_build(self) -> None:
        kind = type(self.stack[-2])  # type: ignore[attr-defined]
        if not self.may_get_state(kind):
            raise pickle.UnpicklingError(f"it changes an object of type {kind.__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[dict-item]


class _MetadataUnpickler(_StrictUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED_IN_METADATA.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the metadata of a checkpoint never needs")
        return pickle._Unpickler.find_class(self, module, name)

    def may_get_state(self, kind: type) -> bool:
        return is_dataclass(kind) and kind.__name__ in _ALLOWED_IN_METADATA.get(kind.__module__, ())


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

    Metadata passes the list above, and objects pass torch's own list (`weights_only`). The patch is global, because
    megatron-core creates its readers itself.
    """
    unrestricted = FileSystemReader.read_metadata
    FileSystemReader.read_metadata = lambda self, *_, **__: read_metadata(Path(self.path))  # type: ignore[method-assign]
    try:
        with _switched_on(_FORCE_WEIGHTS_ONLY), _no_safe_globals():
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

    From the old pickle come `_SCALING_TENSORS` and the numbers `_SCALING_NUMBERS` alone. A module without scales has no
    state, b"". Raises ConversionError where the old pickle has anything else in their place.
    """
    try:
        old = _ScalingUnpickler(io.BytesIO(state)).load()
        extra = old["extra_fp8_variables"]
        if not any(key in old for key in _SCALING_TENSORS):
            return b""
        numbers = {key: _number(extra[key]) for key in _SCALING_NUMBERS if key in extra}
        with _no_safe_globals():
            tensors = {key: _tensor(old[key]) for key in _SCALING_TENSORS}
        return pickle.dumps({"recipe": recipe, **tensors, "extra_fp8_variables": numbers})
    except Exception as error:
        reason = error if isinstance(error, pickle.UnpicklingError) else repr(error)
        raise ConversionError(f"{name}: {reason}; the state of delayed scaling was not loaded") from None


class _Ignored:
    """Stands for an object that is not needed. A pickle can create it and give it a state, without any effect."""

    __slots__ = ("arguments",)

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, _: object) -> None:
        """Takes nothing from the state."""


class _StorageBytes(_Ignored):
    """The bytes of a tensor's storage, another pickle."""


class _TensorParts(_Ignored):
    """Storage, offset, size and stride of a tensor. It is made once the pickle has ended, out of the pickle's reach."""


class _ScalingUnpickler(_StrictUnpickler):
    """Creates nothing but plain values and `_Ignored` objects."""

    _OBJECTS: ClassVar[dict[tuple[str, str], type]] = {
        ("collections", "OrderedDict"): _Ignored,  # a tensor's hooks
        ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"): _Ignored,
        ("megatron.core.safe_globals", "safe_load_from_bytes"): _StorageBytes,
        ("torch._utils", "_rebuild_tensor_v2"): _TensorParts,
        ("torch.storage", "_load_from_bytes"): _StorageBytes,
        ("transformer_engine.common.recipe", "DelayedScaling"): _Ignored,
        ("transformer_engine.common.recipe", "Format"): _Ignored,
        ("transformer_engine.common.recipe", "MMParams"): _Ignored,
        ("transformer_engine.common.recipe", "_FormatHelper"): _Ignored,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._OBJECTS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._OBJECTS[module, name]

    def may_get_state(self, kind: type) -> bool:
        return issubclass(kind, _Ignored)


def _tensor(parts: Any) -> torch.Tensor:
    """Returns the tensor that a pickle describes. Raises where it does not lie within its storage."""
    if type(parts) is not _TensorParts or type(parts.arguments[0]) is not _StorageBytes:
        raise pickle.UnpicklingError("it has another object in a tensor's place")
    stored, offset, size, stride, *_ = parts.arguments
    storage = torch.load(io.BytesIO(*stored.arguments), map_location="cpu", weights_only=True)
    if type(storage) is not torch.TypedStorage:
        raise pickle.UnpicklingError(f"a tensor's storage is of type {type(storage).__name__}")
    length = storage._size()
    if math.prod(size) > length:
        raise pickle.UnpicklingError(f"a tensor of size {size} has a storage of {length} entries")
    values: torch.Tensor = torch._utils._rebuild_tensor(storage, 0, (length,), (1,))
    return values.as_strided(size, stride, offset).clone()


def _number(value: object) -> bool | int | float:
    if not isinstance(value, bool | int | float):
        raise pickle.UnpicklingError(f"it has an object of type {type(value).__name__} in a number's place")
    return value


@contextlib.contextmanager
def _no_safe_globals() -> Iterator[None]:
    """Lets `weights_only` take torch's own list inside the block, and nothing else.

    Megatron-core adds numpy's arrays to the list, through which a pickle can write to any memory. torch.load takes the
    list of the process and none by call, so that loads in other threads are restricted too.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
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
