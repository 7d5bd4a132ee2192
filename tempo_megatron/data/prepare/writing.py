"""A source's questions as a JSONL file, duplicates and rows without use left out and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tempo_megatron.data.identity import identity
from tempo_megatron.data.prepare.catalog import CatalogSource
from tempo_megatron.data.prepare.question import PreparedQuestion, SkippedRow, text_hash
from tempo_megatron.data.reading import DataError, Problem, RowLocation, listed
from tempo_megatron.data.sources import Row
from tempo_megatron.utils.atomic_files import atomic_path

DUPLICATE = "duplicate"
CONTRADICTED = "repeated with another answer"
USELESS = "answer that no response can get right"


class LabelChecks(Protocol):
    """What `grading.labels` knows of labels."""

    def label_problems(self, rows: Sequence[Row]) -> list[str]: ...

    def unanswerable(self, rows: Sequence[Row]) -> list[Problem]: ...

    def contradictions(self, rows: Sequence[Row]) -> list[list[Row]]: ...

    def contradiction(self, rows: Sequence[Row]) -> Problem: ...


@dataclass
class Count:
    """Rows read, dropped by reason, and kept; `contradicted` says which questions are repeated with other answers."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    contradicted: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        why = ", ".join(f"{number} {reason}" for reason, number in self.dropped.most_common())
        return f"{self.read} rows read, {self.dropped.total()} dropped{f' ({why})' if why else ''}, {self.kept} kept"


@dataclass
class _Copies:
    """The first row of a question, and the first place of each answer that its rows have."""

    question: PreparedQuestion
    answers: dict[str, tuple[RowLocation, PreparedQuestion]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """One for each answer, as the graders' checks take them."""
        return [
            Row(question.text, question.label, question.id, question.source, question.grader, place=place)
            for place, question in self.answers.values()
        ]

    def answered(self, useless: Set[RowLocation], contradicted: Set[str]) -> PreparedQuestion:
        """The question with its answer, or with none and the reason."""
        if not self.answers:
            return self.question
        right = [question for place, question in self.answers.values() if place not in useless]
        if right and self.question.identity not in contradicted:
            return replace(right[0], id=self.question.id)
        return replace(self.question, answer=None, metadata=None, unanswered=CONTRADICTED if right else USELESS)


def prepare(
    source: CatalogSource,
    path: Path | None,
    out: Path,
    *,
    limit: int | None,
    keep_unanswered: bool,
    drop_useless: bool,
    checks: LabelChecks,
) -> Count:
    """Write the source's questions, all or none.

    A question whose rows have different answers has none of them. Raises DataError listing rows that cannot be read or
    have another schema and, unless `drop_useless`, answers that no response can get right; or where none is kept.
    """
    count = Count()
    problems: list[Problem] = []
    copies = _copies(source, path, limit, keep_unanswered, count, problems)
    labels = [row for of_one in copies for row in of_one.rows()]
    wrong = checks.unanswerable(labels)
    if problems or (wrong and not drop_useless):
        raise DataError("\n".join(listed([*problems, *([] if drop_useless else wrong)])))
    useless = {place for place, _ in wrong}
    contradictions = checks.contradictions([row for row in labels if row.place not in useless])
    contradicted = {identity(rows[0].question) for rows in contradictions}
    count.contradicted = listed(map(checks.contradiction, contradictions))
    questions = [of_one.answered(useless, contradicted) for of_one in copies]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as aside:
        with aside.open("w", encoding="utf-8") as lines:
            for row in _written(questions, keep_unanswered, count):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not count.kept:
            raise DataError(f"{count}: nothing to write{f'; {source.unanswered}' if source.unanswered else ''}")
    return count


def _copies(
    source: CatalogSource,
    path: Path | None,
    limit: int | None,
    keep_unanswered: bool,
    count: Count,
    problems: list[Problem],
) -> list[_Copies]:
    """The questions in the order of their first rows, as many as `limit` allows."""
    copies: dict[str, _Copies] = {}
    usable = 0
    for place, question in _questions(source, path, count, problems):
        of_one = copies.setdefault(question.identity, _Copies(question))
        if of_one.question is not question:
            count.dropped[DUPLICATE] += 1
        usable += keep_unanswered and of_one.question is question
        if question.has_answer:
            usable += not (keep_unanswered or of_one.answers)
            of_one.answers.setdefault(json.dumps(question.answer, sort_keys=True), (place, question))
        if usable == limit:
            break
    return list(copies.values())


def _questions(
    source: CatalogSource, path: Path | None, count: Count, problems: list[Problem]
) -> Iterator[tuple[RowLocation, PreparedQuestion]]:
    for place, part, row in source.rows(path, problems):
        count.read += 1
        try:
            question = source.question(row, part)
            if not question.text.strip():
                raise SkippedRow("no question")
        except SkippedRow as reason:
            count.dropped[str(reason)] += 1
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # rows in any other schema
            problems.append((place, f"{error}; is it in this source's schema? (docs/data.md)"))
        else:
            yield place, question


def _written(questions: Sequence[PreparedQuestion], keep_unanswered: bool, count: Count) -> Iterator[dict[str, Any]]:
    ids: set[str] = set()
    for question in questions:
        if not (question.has_answer or keep_unanswered):
            count.dropped[question.unanswered] += 1
            continue
        row = question.row()
        if row["id"] in ids:  # parts of one source that number their rows alike
            row["id"] = f"{row['id']}-{text_hash(question.identity)}"
        ids.add(row["id"])
        count.kept += 1
        yield row
