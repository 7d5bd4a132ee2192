"""The directory of an evaluation: settings.json, samples/NAME.jsonl, and in the end results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tempo_megatron.utils.atomic_files import write_whole

Record = dict[str, Any]
"""one sampled response, as `phases.evaluate.response_record` makes it"""
_SETTINGS = "settings.json"


def differences(out: Path, settings: dict[str, Any]) -> list[str]:
    """Settings under which the directory's samples were drawn and that are others now, a line each."""
    path = out / _SETTINGS
    if not path.is_file():
        return []
    theirs, ours = dict(_flat(json.loads(path.read_text()))), dict(_flat(settings))
    return [
        f"--out {out} holds samples of other settings: {key} was {theirs.get(key)}, is {ours.get(key)}; "
        "name another directory"
        for key in {**theirs, **ours}
        if theirs.get(key) != ours.get(key)
    ]


def open_directory(out: Path, settings: dict[str, Any]) -> None:
    """Make the directory and write the settings into it."""
    (out / "samples").mkdir(parents=True, exist_ok=True)
    write_whole(out / _SETTINGS, json.dumps(settings, indent=2) + "\n")


class SampleFile:
    """The samples of one benchmark, a line each; a question's stand together."""

    def __init__(self, out: Path, benchmark: str, samples: int) -> None:
        self.path = out / "samples" / f"{benchmark}.jsonl"
        self._samples = samples

    def resume(self) -> dict[str, list[Record]]:
        """The complete questions' samples by prompt id. What an interruption left behind them is cut off."""
        questions, end = self._complete()
        if self.path.exists():
            os.truncate(self.path, end)
        return questions

    def append(self, records: Sequence[Record]) -> None:
        """Add complete questions; they are on the disk when this returns."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())

    def _complete(self) -> tuple[dict[str, list[Record]], int]:
        """Questions up to the first that is not whole, and the offset in bytes at which the last of them ends."""
        questions: dict[str, list[Record]] = {}
        end = 0
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for start in range(0, len(lines), self._samples):
            group = lines[start : start + self._samples]
            records = list(_parsed(group))
            if [record["sample"] for record in records] != list(range(self._samples)):
                break
            questions[records[0]["prompt"]] = records
            end += sum(map(len, group))
        return questions, end


def _parsed(lines: Sequence[bytes]) -> Iterator[Record]:
    """Records of lines, up to the first that was not written to its end."""
    for line in lines:
        if not line.endswith(b"\n"):
            return
        try:
            yield json.loads(line)
        except ValueError:
            return


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
