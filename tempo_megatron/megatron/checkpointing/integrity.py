"""A checkpoint's `manifest.json`: the size and SHA-256 of every file when it was written, to detect and name damage.

The manifest detects damage to itself too: its text must equal what `_text` writes for its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tempo_megatron.conversion import hf_files
from tempo_megatron.conversion.errors import ConversionError

MANIFEST_NAME = "manifest.json"
_THREADS = 4


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file when it was written."""

    bytes: int
    sha256: str


type Manifest = dict[str, FileRecord]
"""File records by path below the checkpoint."""


def list_files(checkpoint: Path) -> list[str]:
    """Returns the paths of all files in a checkpoint except its manifest, relative to the checkpoint."""
    names = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST_NAME)


def checksum_files(checkpoint: Path, names: Iterable[str]) -> Manifest:
    """Returns the records of these files as they are now."""
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _record(checkpoint / name), names), strict=True))


def write_manifest(checkpoint: Path, files: Mapping[str, FileRecord]) -> None:
    """Writes the manifest, then syncs all files and directories of the checkpoint to disk."""
    (checkpoint / MANIFEST_NAME).write_text(_text(files))
    for path in [*checkpoint.rglob("*"), checkpoint]:
        hf_files.fsync_path(path)


def read_manifest(checkpoint: Path) -> Manifest:
    """Returns the manifest. Raises ConversionError if it is missing or damaged."""
    path = checkpoint / MANIFEST_NAME
    if not path.is_file():
        raise ConversionError(
            f"{checkpoint}: no {MANIFEST_NAME}: this is no checkpoint, or one of a version that wrote no manifest; "
            "export it with that version (to-hf), and convert the export with to-megatron"
        )
    try:
        text = path.read_text()
        files = {name: FileRecord(**record) for name, record in json.loads(text)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: damaged: {error!r}") from None
    if text != _text(files):
        raise ConversionError(f"{path}: damaged: it does not match its own checksum")
    return files


def manifest_problems(checkpoint: Path, files: Mapping[str, FileRecord], *, contents: bool) -> list[str]:
    """Returns one line for each of these files that is missing or has changed since it was written.

    Compares sizes, and with `contents` checksums too.
    """
    problems = {name: _size_problem(checkpoint / name, record) for name, record in files.items()}
    if contents:
        readable = [name for name, problem in problems.items() if not problem]
        changed = {name for name, record in checksum_files(checkpoint, readable).items() if record != files[name]}
        problems |= {name: f"{checkpoint / name}: damaged: its SHA-256 is not the recorded one" for name in changed}
    return [problem for problem in problems.values() if problem]


def _size_problem(path: Path, record: FileRecord) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    size = path.stat().st_size
    if size == record.bytes:
        return None
    return f"{path}: {'cut short' if size < record.bytes else 'too long'}: {size} bytes of {record.bytes}"


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(file.tell(), digest.hexdigest())


def _text(files: Mapping[str, FileRecord]) -> str:
    records = json.dumps({name: asdict(record) for name, record in sorted(files.items())}, indent=1)
    checksum = hashlib.sha256(records.encode()).hexdigest()
    return f'{{"sha256": "{checksum}", "files": {records}}}\n'
