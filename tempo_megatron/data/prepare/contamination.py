"""Finds labeled questions that are also evaluated: the same text, or 13 consecutive words in common."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_megatron.config import SourceConfig
from tempo_megatron.data.identity import normalize_question
from tempo_megatron.data.reading import DataError, read_text
from tempo_megatron.data.sources import Row, read_answered_rows, read_rows
from tempo_megatron.utils.atomic_files import write_text_atomically

NGRAM_WORDS = 13
"""The length of n-gram, in words, of GPT-3's contamination study and of later ones."""


@dataclass(frozen=True)
class ContaminatedPair:
    """A labeled question and an evaluated one that repeats it."""

    labeled: str
    """The id of the labeled question."""
    evaluated: str
    """The id of the evaluated question."""
    stream: str
    """The stream of the evaluated question: `unlabeled` or `held_out`."""
    source: str
    """The source of the evaluated question."""
    exact: bool
    """Whether the texts are the same; otherwise they share an n-gram."""

    def as_dict(self) -> dict[str, str]:
        kind = "exact" if self.exact else f"{NGRAM_WORDS}-gram"
        return {"labeled": self.labeled, self.stream: self.evaluated, "source": self.source, "kind": kind}


def read_prepared_files(
    labeled: Sequence[Path], evaluated: Sequence[Path], label_problems: Callable[[Sequence[Row]], list[str]]
) -> dict[Path, list[Row]]:
    """Return the rows of normalized files. `label_problems` returns what is wrong with the rows' labels, one a line.

    Raises DataError listing every problem of files, rows and labels. A labeled row without an answer is one.
    """
    rows, problems = {}, []
    sources = {path: SourceConfig(path=str(path)) for path in (*labeled, *evaluated)}
    for path, source in sources.items():
        try:
            rows[path] = read_rows([source], labeled=path in labeled)
        except DataError as error:
            problems.append(str(error))
    problems += label_problems(read_answered_rows(sources.values()))
    if problems:
        raise DataError("\n".join(problems))
    return rows


def contaminated_pairs(labeled: Sequence[Row], evaluated: Mapping[str, Sequence[Row]]) -> list[ContaminatedPair]:
    """Return all pairs of a labeled question and an evaluated one that have the same text or share an n-gram.

    `evaluated` has the rows of each stream. A question shorter than 13 words is one n-gram, so that it only matches a
    question of the same text. Time and memory grow with the number of words, not of pairs.
    """
    texts = [normalize_question(row.question) for row in labeled]
    ngrams = [_ngram_hashes(text) for text in texts]
    labeled_ngrams = {ngram for text_ngrams in ngrams for ngram in text_ngrams}
    evaluated_rows = [(stream, row) for stream, rows in evaluated.items() for row in rows]
    evaluated_texts = [normalize_question(row.question) for _, row in evaluated_rows]
    indices_by_ngram: defaultdict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(evaluated_texts):
        for ngram in set(_ngram_hashes(text)) & labeled_ngrams:
            indices_by_ngram[ngram].append(index)
    pairs = []
    for row, text, text_ngrams in zip(labeled, texts, ngrams, strict=True):
        for index in sorted({index for ngram in text_ngrams for index in indices_by_ngram.get(ngram, ())}):
            stream, match = evaluated_rows[index]
            pairs.append(ContaminatedPair(row.id, match.id, stream, match.source, text == evaluated_texts[index]))
    return pairs


def _ngram_hashes(text: str) -> array[int]:
    """Return 64-bit hashes of a normalized text's 13-word n-grams, or of the full text where it is shorter."""
    words = text.split(" ")
    count = max(1, len(words) - NGRAM_WORDS + 1)
    return array("q", [hash(" ".join(words[i : i + NGRAM_WORDS])) for i in range(count)])


def contamination_report(
    labeled: Sequence[Row], evaluated: Mapping[str, Sequence[Row]], pairs: Sequence[ContaminatedPair]
) -> dict[str, Any]:
    """Return counts and shares of contaminated questions, overall and by evaluated source, and all pairs.

    A share is of the questions that are counted.
    """
    contaminated = {pair.labeled for pair in pairs}
    sources = []
    for stream, rows in evaluated.items():
        for source in sorted({row.source for row in rows}):
            source_pairs = [pair for pair in pairs if (pair.stream, pair.source) == (stream, source)]
            exact = {pair.evaluated for pair in source_pairs if pair.exact}
            overlap = {pair.evaluated for pair in source_pairs} - exact
            questions = sum(row.source == source for row in rows)
            sources.append(
                {
                    "stream": stream,
                    "source": source,
                    "questions": questions,
                    "exact": len(exact),
                    f"{NGRAM_WORDS}-gram": len(overlap),
                    "share": round((len(exact) + len(overlap)) / questions, 6),
                }
            )
    return {
        "labeled": {
            "questions": len(labeled),
            "contaminated": len(contaminated),
            "share": round(len(contaminated) / len(labeled), 6) if labeled else 0.0,
        },
        "evaluated": sources,
        "pairs": [pair.as_dict() for pair in pairs],
    }


def format_table(report: Mapping[str, Any]) -> str:
    """Return the report's counts as a table."""
    columns = ("stream", "source", "questions", "exact", f"{NGRAM_WORDS}-gram", "share")
    cells = [columns] + [tuple(str(source[name]) for name in columns) for source in report["evaluated"]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    total = report["labeled"]
    contaminated = f"{total['contaminated']} of {total['questions']} ({total['share']:.2%})"
    return "\n".join([*lines, f"labeled questions that are also evaluated: {contaminated}"])


def write_clean(files: Mapping[Path, Sequence[Row]], contaminated: set[str], directory: Path) -> dict[Path, int]:
    """Write the files without their contaminated rows, under their own names, and return the number of rows kept.

    Raises DataError where two files would have one name, or a file would replace itself.
    """
    targets = {path: directory / path.name for path in files}
    if len(set(targets.values())) < len(targets) or any(path.resolve() == to.resolve() for path, to in targets.items()):
        raise DataError(f"--clean {directory}: needs a directory of its own and labeled files of different names")
    directory.mkdir(parents=True, exist_ok=True)
    row_counts = {}
    for path, rows in files.items():
        lines = [line for line in read_text(path).split("\n") if line.strip()]
        clean = [line for line, row in zip(lines, rows, strict=True) if row.id not in contaminated]
        write_text_atomically(targets[path], "".join(f"{line}\n" for line in clean))
        row_counts[targets[path]] = len(clean)
    return row_counts
