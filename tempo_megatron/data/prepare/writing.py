"""Writes a source's questions as a JSONL file. Duplicates and unusable rows are dropped and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tempo_megatron.data.identity import normalize_question, text_hash
from tempo_megatron.data.prepare.catalog import CatalogSource
from tempo_megatron.data.prepare.question import PreparedQuestion, SkippedRow
from tempo_megatron.data.reading import DataError, Problem, RowLocation, format_problems
from tempo_megatron.data.sources import Row
from tempo_megatron.utils.atomic_files import atomic_path

DUPLICATE = "duplicate"
CONTRADICTED = "repeated with another answer"
USELESS = "answer that no response can get right"


class LabelChecks(Protocol):
    """The checks of labels that `grading.labels` implements."""

    def label_problems(self, rows: Sequence[Row]) -> list[str]: ...

    def unanswerable(self, rows: Sequence[Row]) -> list[Problem]: ...

    def contradictions(self, rows: Sequence[Row]) -> list[list[Row]]: ...

    def contradiction(self, rows: Sequence[Row]) -> Problem: ...


@dataclass
class RowCounts:
    """The numbers of rows read, dropped and kept."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """The number of dropped rows by reason."""
    contradicted: list[str] = field(default_factory=list)
    """One line for each question that repeats with another answer."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.dropped.most_common())
        dropped = f"{self.dropped.total()} dropped{f' ({reasons})' if reasons else ''}"
        return f"{self.read} rows read, {dropped}, {self.kept} kept"


@dataclass
class _Copies:
    """All rows of one question."""

    question: PreparedQuestion
    """The question of the first row."""
    answers: dict[str, tuple[RowLocation, PreparedQuestion]] = field(default_factory=dict)
    """The first row of each distinct answer, by the answer's JSON."""

    def rows(self) -> list[Row]:
        """Return one row for each answer, in the form that the label checks take."""
        return [
            Row(question.text, question.label, question.id, question.source, question.grader, location=location)
            for location, question in self.answers.values()
        ]

    def with_answer(self, useless: Set[RowLocation], contradicted: Set[str]) -> PreparedQuestion:
        """Return the question with its answer, or without an answer and with the reason."""
        if not self.answers:
            return self.question
        usable = [question for location, question in self.answers.values() if location not in useless]
        if usable and self.question.normalized_text not in contradicted:
            return replace(usable[0], id=self.question.id)
        return replace(self.question, answer=None, metadata=None, unanswered=CONTRADICTED if usable else USELESS)


def prepare_source(
    source: CatalogSource,
    path: Path | None,
    out: Path,
    *,
    limit: int | None,
    keep_unanswered: bool,
    drop_useless: bool,
    checks: LabelChecks,
) -> RowCounts:
    """Write the source's questions to `out`, all or none, and return the numbers of rows.

    A question whose rows have different answers loses its answer. Raises DataError listing every row that cannot be
    read or has another schema; every answer that no response can get right, unless `drop_useless`; or that no question
    is kept.
    """
    counts = RowCounts()
    problems: list[Problem] = []
    questions_with_copies = _copies(source, path, limit, keep_unanswered, counts, problems)
    labels = [row for copies in questions_with_copies for row in copies.rows()]
    useless_labels = checks.unanswerable(labels)
    if problems or (useless_labels and not drop_useless):
        raise DataError("\n".join(format_problems([*problems, *([] if drop_useless else useless_labels)])))
    useless = {location for location, _ in useless_labels}
    contradictions = checks.contradictions([row for row in labels if row.location not in useless])
    contradicted = {normalize_question(rows[0].question) for rows in contradictions}
    counts.contradicted = format_problems(map(checks.contradiction, contradictions))
    questions = [copies.with_answer(useless, contradicted) for copies in questions_with_copies]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for row in _rows_to_write(questions, keep_unanswered, counts):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not counts.kept:
            raise DataError(f"{counts}: nothing to write{f'; {source.unanswered}' if source.unanswered else ''}")
    return counts


def _copies(
    source: CatalogSource,
    path: Path | None,
    limit: int | None,
    keep_unanswered: bool,
    counts: RowCounts,
    problems: list[Problem],
) -> list[_Copies]:
    """Return the questions in the order of their first rows, as many as `limit` allows."""
    copies_by_text: dict[str, _Copies] = {}
    usable = 0
    for location, question in _questions(source, path, counts, problems):
        copies = copies_by_text.setdefault(question.normalized_text, _Copies(question))
        if copies.question is not question:
            counts.dropped[DUPLICATE] += 1
        usable += keep_unanswered and copies.question is question
        if question.has_answer:
            usable += not (keep_unanswered or copies.answers)
            copies.answers.setdefault(json.dumps(question.answer, sort_keys=True), (location, question))
        if usable == limit:
            break
    return list(copies_by_text.values())


def _questions(
    source: CatalogSource, path: Path | None, counts: RowCounts, problems: list[Problem]
) -> Iterator[tuple[RowLocation, PreparedQuestion]]:
    """Yield the question of each row. Counts skipped rows; adds rows in another schema to `problems`."""
    for location, part, row in source.rows(path, problems):
        counts.read += 1
        try:
            question = source.question(row, part)
            if not question.text.strip():
                raise SkippedRow("no question")
        except SkippedRow as reason:
            counts.dropped[str(reason)] += 1
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # The row has another schema.
            problems.append((location, f"{error}; is it in this source's schema? (docs/data.md)"))
        else:
            yield location, question


def _rows_to_write(
    questions: Sequence[PreparedQuestion], keep_unanswered: bool, counts: RowCounts
) -> Iterator[dict[str, Any]]:
    """Yield the rows of questions, counting those that are kept and those that are dropped for want of an answer."""
    ids: set[str] = set()
    for question in questions:
        if not (question.has_answer or keep_unanswered):
            counts.dropped[question.unanswered] += 1
            continue
        row = question.row()
        if row["id"] in ids:  # Parts of one source may number their rows alike.
            row["id"] = f"{row['id']}-{text_hash(question.normalized_text)}"
        ids.add(row["id"])
        counts.kept += 1
        yield row
