"""Reads the pickles of a torch_dist checkpoint through lists of allowed names, because a pickle can run any code.

Pickles are `.metadata`, every object that is no tensor (some of them in a BytesIO), and the `common.pt` of a converted
checkpoint. They are read after their checksums have matched.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from tempo_megatron.conversion.errors import ConversionError

METADATA = ".metadata"
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
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
    forced = os.environ.get(_FORCE_WEIGHTS_ONLY)
    FileSystemReader.read_metadata = lambda self, *_, **__: read_metadata(Path(self.path))  # type: ignore[method-assign]
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            yield
    finally:
        FileSystemReader.read_metadata = unrestricted  # type: ignore[method-assign]
        os.environ.pop(_FORCE_WEIGHTS_ONLY)
        if forced is not None:
            os.environ[_FORCE_WEIGHTS_ONLY] = forced
