"""The directory of an evaluation: settings.json, samples/NAME.jsonl, and the results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tempo_megatron.utils.atomic_files import write_text_atomically

Record = dict[str, Any]
"""One sampled response, as `phases.evaluate.response_record` returns it."""
_SETTINGS = "settings.json"


def differences(out: Path, settings: dict[str, Any]) -> list[str]:
    """Returns a line for each setting that differs from the one that the directory's samples were drawn with."""
    path = out / _SETTINGS
    if not path.is_file():
        return []
    before, now = dict(_flat(json.loads(path.read_text()))), dict(_flat(settings))
    return [
        f"--out {out} holds samples of other settings: {key} was {before.get(key)}, is {now.get(key)}; "
        "name another directory"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def open_directory(out: Path, settings: dict[str, Any]) -> None:
    """Creates the directory and writes the settings into it."""
    (out / "samples").mkdir(parents=True, exist_ok=True)
    write_text_atomically(out / _SETTINGS, json.dumps(settings, indent=2) + "\n")


class SampleFile:
    """The samples of one benchmark, a line each. The samples of a question follow one another."""

    def __init__(self, out: Path, benchmark: str, samples: int) -> None:
        self.path = out / "samples" / f"{benchmark}.jsonl"
        self._samples = samples

    def resume(self) -> dict[str, list[Record]]:
        """Returns the samples of the complete questions by prompt id, and cuts off what follows them in the file: an
        interruption leaves incomplete questions and lines."""
        questions, end = self._complete()
        if self.path.exists():
            os.truncate(self.path, end)
        return questions

    def append(self, records: Sequence[Record]) -> None:
        """Adds complete questions. They are on the disk when this returns."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())

    def _complete(self) -> tuple[dict[str, list[Record]], int]:
        """Returns the questions before the first incomplete one, and the offset in bytes at which the last of them
        ends."""
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
    """Yields the records of lines before the first line that was not written to its end."""
    for line in lines:
        if not line.endswith(b"\n"):
            return
        try:
            yield json.loads(line)
        except ValueError:
            return


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested mappings by dotted keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
