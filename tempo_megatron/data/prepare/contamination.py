"""Which labeled questions are also evaluated: the same text, or a run of 13 words in common."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_megatron.config import SourceConfig
from tempo_megatron.data.identity import identity
from tempo_megatron.data.reading import DataError, read_text
from tempo_megatron.data.sources import Row, answered_rows, read_rows
from tempo_megatron.utils.atomic_files import write_text_atomically

WORDS = 13
"""the length of run that GPT-3's and later contamination studies count"""


@dataclass(frozen=True)
class Pair:
    """A labeled question that an evaluated one repeats."""

    labeled: str
    evaluated: str
    stream: str
    source: str
    exact: bool

    def as_dict(self) -> dict[str, str]:
        kind = "exact" if self.exact else f"{WORDS}-gram"
        return {"labeled": self.labeled, self.stream: self.evaluated, "source": self.source, "kind": kind}


def read(files: Iterable[Path], problems: Callable[[Sequence[Row]], list[str]]) -> dict[Path, list[Row]]:
    """The rows of normalized files. `problems` says what is wrong with the labels of rows, a line each.

    Raises DataError listing every problem of files, rows and labels.
    """
    rows, wrong = {}, []
    sources = {path: SourceConfig(path=str(path)) for path in files}
    for path, source in sources.items():
        try:
            rows[path] = read_rows([source], labeled=False)
        except DataError as error:
            wrong.append(str(error))
    wrong += problems(answered_rows(sources.values()))
    if wrong:
        raise DataError("\n".join(wrong))
    return rows


def pairs(labeled: Sequence[Row], evaluated: Mapping[str, Sequence[Row]]) -> list[Pair]:
    """All pairs of a labeled question and one of each stream that are the same or share a run of words.

    A question shorter than 13 words is one run, so that it only matches a question of the same text. Time and memory
    grow with the number of words, not of pairs.
    """
    texts = [identity(row.question) for row in labeled]
    runs = [_runs(text) for text in texts]
    every = {run for of_one in runs for run in of_one}
    others = [(stream, row) for stream, rows in evaluated.items() for row in rows]
    other_texts = [identity(row.question) for _, row in others]
    where: defaultdict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(other_texts):
        for run in set(_runs(text)) & every:
            where[run].append(index)
    return [
        Pair(row.id, others[index][1].id, others[index][0], others[index][1].source, text == other_texts[index])
        for row, text, of_one in zip(labeled, texts, runs, strict=True)
        for index in sorted({index for run in of_one for index in where.get(run, ())})
    ]


def _runs(text: str) -> array[int]:
    """Hashes (64 bits) of the runs of 13 words in a normalized text, or of the whole where it is shorter."""
    words = text.split(" ")
    return array("q", [hash(" ".join(words[i : i + WORDS])) for i in range(max(1, len(words) - WORDS + 1))])


def report(labeled: Sequence[Row], evaluated: Mapping[str, Sequence[Row]], found: Sequence[Pair]) -> dict[str, Any]:
    """Counts and shares, overall and for every evaluated source, and all pairs. A share is of the questions counted."""
    contaminated = {pair.labeled for pair in found}
    sources = []
    for stream, rows in evaluated.items():
        for source in sorted({row.source for row in rows}):
            here = [pair for pair in found if (pair.stream, pair.source) == (stream, source)]
            exact = {pair.evaluated for pair in here if pair.exact}
            overlap = {pair.evaluated for pair in here} - exact
            questions = sum(row.source == source for row in rows)
            sources.append(
                {
                    "stream": stream,
                    "source": source,
                    "questions": questions,
                    "exact": len(exact),
                    f"{WORDS}-gram": len(overlap),
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
        "pairs": [pair.as_dict() for pair in found],
    }


def table(figures: Mapping[str, Any]) -> str:
    """The report's counts to read."""
    columns = ("stream", "source", "questions", "exact", f"{WORDS}-gram", "share")
    lines = [columns] + [tuple(str(row[name]) for name in columns) for row in figures["evaluated"]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    total = figures["labeled"]
    contaminated = f"{total['contaminated']} of {total['questions']} ({total['share']:.2%})"
    return "\n".join([*shown, f"labeled questions that are also evaluated: {contaminated}"])


def write_clean(files: Mapping[Path, Sequence[Row]], contaminated: set[str], directory: Path) -> dict[Path, int]:
    """The files without their contaminated rows, under their own names; returns the rows kept of each.

    Raises DataError where two files would have one name, or a file would replace itself.
    """
    targets = {path: directory / path.name for path in files}
    if len(set(targets.values())) < len(targets) or any(path.resolve() == to.resolve() for path, to in targets.items()):
        raise DataError(f"--clean {directory}: needs a directory of its own and labeled files of different names")
    directory.mkdir(parents=True, exist_ok=True)
    kept = {}
    for path, rows in files.items():
        lines = [line for line in read_text(path).split("\n") if line.strip()]
        clean = [line for line, row in zip(lines, rows, strict=True) if row.id not in contaminated]
        write_text_atomically(targets[path], "".join(f"{line}\n" for line in clean))
        kept[targets[path]] = len(clean)
    return kept
