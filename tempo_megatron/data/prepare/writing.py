"""A source's questions as a JSONL file, duplicates and rows without use left out and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tempo_megatron.data.prepare.catalogue import Source
from tempo_megatron.data.prepare.question import Question, SkippedRow, text_hash
from tempo_megatron.data.reading import DataError
from tempo_megatron.whole_files import written_whole

NO_ANSWER = "no answer"
DUPLICATE = "duplicate"


@dataclass
class Count:
    """Rows read, dropped by reason, and kept."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        why = ", ".join(f"{number} {reason}" for reason, number in self.dropped.most_common())
        return f"{self.read} rows read, {self.dropped.total()} dropped{f' ({why})' if why else ''}, {self.kept} kept"


def prepare(source: Source, path: Path | None, out: Path, limit: int | None, keep_unanswered: bool) -> Count:
    """Write the source's questions, all or none.

    Raises DataError where rows cannot be read, have another schema, or none is kept.
    """
    count = Count()
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as aside:
        with aside.open("w", encoding="utf-8") as lines:
            for row in _rows(source, path, limit, keep_unanswered, count):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not count.kept:
            raise DataError(f"{count}: nothing to write{f'; {source.unanswered}' if source.unanswered else ''}")
    return count


def _rows(
    source: Source, path: Path | None, limit: int | None, keep_unanswered: bool, count: Count
) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    ids: set[str] = set()
    for question in _questions(source, path, count):
        if question.identity in seen:
            count.dropped[DUPLICATE] += 1
        elif not (question.has_answer or keep_unanswered):
            count.dropped[NO_ANSWER] += 1
        else:
            seen.add(question.identity)
            row = question.row()
            if row["id"] in ids:  # parts of one source that number their rows alike
                row["id"] = f"{row['id']}-{text_hash(question.identity)}"
            ids.add(row["id"])
            count.kept += 1
            yield row
            if count.kept == limit:
                return


def _questions(source: Source, path: Path | None, count: Count) -> Iterator[Question]:
    for part, row in source.rows(path):
        count.read += 1
        try:
            question = source.question(row, part)
            if not question.text.strip():
                raise SkippedRow("no question")
            yield question
        except SkippedRow as reason:
            count.dropped[str(reason)] += 1
        except (TypeError, KeyError, ValueError) as error:
            where = f"{path or source.hub}, row {count.read}{f' ({part})' if part else ''}"
            raise DataError(f"{where}: {error}; is it in this source's schema? (docs/data.md)") from error
