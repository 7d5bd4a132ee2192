"""A checkpoint's `manifest.json`: size and SHA-256 of every file as it was written, so that damage is found and named.

The manifest answers for itself too: its text must be what `_text` makes of its own content.
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

NAME = "manifest.json"
_THREADS = 4


@dataclass(frozen=True)
class Written:
    """What a file was when it was written."""

    bytes: int
    sha256: str


type Files = dict[str, Written]
"""by path below the checkpoint"""


def files_of(checkpoint: Path) -> list[str]:
    """Everything in a checkpoint but its manifest."""
    found = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name for name in found if name != NAME)


def describe(checkpoint: Path, names: Iterable[str]) -> Files:
    """These files as they are now."""
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _describe(checkpoint / name), names), strict=True))


def write(checkpoint: Path, files: Mapping[str, Written]) -> None:
    """The manifest, and all files and directories of the checkpoint brought to stable storage."""
    (checkpoint / NAME).write_text(_text(files))
    for path in [*checkpoint.rglob("*"), checkpoint]:
        hf_files.fsync_path(path)


def read(checkpoint: Path) -> Files:
    """Raises ConversionError where there is no manifest or it is damaged."""
    path = checkpoint / NAME
    if not path.is_file():
        raise ConversionError(
            f"{checkpoint}: no {NAME}: not a checkpoint, or written before checkpoints had one; the version that wrote "
            "it can export it (to-hf), and to-megatron makes a checkpoint of that"
        )
    try:
        text = path.read_text()
        files = {name: Written(**one) for name, one in json.loads(text)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: damaged: {error!r}") from None
    if text != _text(files):
        raise ConversionError(f"{path}: damaged: not what its own checksum says")
    return files


def manifest_problems(checkpoint: Path, files: Mapping[str, Written], *, contents: bool) -> list[str]:
    """A line for each of these files that is missing or not as it was written. Sizes alone are compared unless
    `contents` are read too."""
    found = {name: _size_problem(checkpoint / name, written) for name, written in files.items()}
    if contents:
        read = [name for name, problem in found.items() if not problem]
        changed = {name for name, now in describe(checkpoint, read).items() if now != files[name]}
        found |= {name: f"{checkpoint / name}: damaged: its SHA-256 is not that of its writing" for name in changed}
    return [problem for problem in found.values() if problem]


def _size_problem(path: Path, written: Written) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    size = path.stat().st_size
    if size == written.bytes:
        return None
    return f"{path}: {'cut short' if size < written.bytes else 'too long'}: {size} bytes of {written.bytes}"


def _describe(path: Path) -> Written:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Written(file.tell(), digest.hexdigest())


def _text(files: Mapping[str, Written]) -> str:
    listed = json.dumps({name: asdict(written) for name, written in sorted(files.items())}, indent=1)
    own = hashlib.sha256(listed.encode()).hexdigest()
    return f'{{"sha256": "{own}", "files": {listed}}}\n'
