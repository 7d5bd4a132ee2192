"""Reads the pickles of a torch_dist checkpoint through lists of allowed names, because a pickle can run any code.

Pickles are `.metadata`, every object that is no tensor (some of them in a BytesIO), the `common.pt` of a converted
checkpoint, and the bytes in which Transformer Engine keeps the state of delayed scaling. They are read after their
checksums have matched.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from tempo_megatron.conversion.errors import ConversionError

METADATA = ".metadata"
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ALLOW_EXTRA_STATE = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
"""Without it Transformer Engine 2.18 refuses every pickle of delayed scaling, its own included."""
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

    Metadata passes the list above, and objects pass torch's own list (`weights_only`). BytesIO is added to the latter,
    because Transformer Engine keeps some state in one. The patch is global, because megatron-core creates its readers
    itself.
    """
    unrestricted = FileSystemReader.read_metadata
    FileSystemReader.read_metadata = lambda self, *_, **__: read_metadata(Path(self.path))  # type: ignore[method-assign]
    try:
        with _switched_on(_FORCE_WEIGHTS_ONLY), torch.serialization.safe_globals([io.BytesIO]):
            yield
    finally:
        FileSystemReader.read_metadata = unrestricted  # type: ignore[method-assign]


@contextlib.contextmanager
def allowed_extra_states(states: Mapping[str, Any]) -> Iterator[None]:
    """Lets Transformer Engine unpickle these modules' extra states inside the block, once their names have passed.

    The names are those of megatron-core's own list. `states` maps a name to uint8 [bytes], or to anything else where a
    module keeps no pickle. Raises ConversionError, before the block, for a pickle with another name.
    """
    with _switched_on(_FORCE_WEIGHTS_ONLY, _ALLOW_EXTRA_STATE):
        for name, state in states.items():
            if isinstance(state, torch.Tensor) and state.numel():
                _check_extra_state(name, state.cpu().numpy().tobytes())
        yield


def _check_extra_state(name: str, state: bytes) -> None:
    from megatron.core.safe_globals import SafeUnpickler

    try:
        SafeUnpickler(io.BytesIO(state)).load()
    except pickle.UnpicklingError as error:
        raise ConversionError(f"{name}: {error}; it was not loaded") from None


@contextlib.contextmanager
def _switched_on(*variables: str) -> Iterator[None]:
    """Sets environment variables to 1 inside the block, and restores them."""
    before = {variable: os.environ.get(variable) for variable in variables}
    os.environ.update(dict.fromkeys(variables, "1"))
    try:
        yield
    finally:
        for variable, value in before.items():
            os.environ.pop(variable)
            if value is not None:
                os.environ[variable] = value
