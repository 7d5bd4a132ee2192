"""`tempo data`: prepares question sources, and finds labeled questions that are also evaluated."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tempo_megatron.data.prepare import contamination
from tempo_megatron.data.prepare.catalog import SOURCES
from tempo_megatron.data.prepare.question import NO_ANSWER
from tempo_megatron.data.prepare.writing import LabelChecks, prepare_source
from tempo_megatron.data.reading import DataError
from tempo_megatron.utils.atomic_files import write_text_atomically
from tempo_megatron.utils.terminal import print_table, refuse


def write_source(
    name: str,
    path: Path | None,
    directory: Path,
    *,
    limit: int | None,
    keep_unanswered: bool,
    drop_useless: bool,
    checks: LabelChecks,
) -> int:
    """Writes a source as `directory`/NAME.jsonl, prints the counts and returns the exit code: 0 success, 2 bad input.

    `path` None reads the source from its hub. `checks` finds the problems of labels.
    """
    try:
        if name not in SOURCES:
            raise DataError(
                f"{name} is none of the public sources: {', '.join(SOURCES)}; a JSONL file of yours needs no preparing"
            )
        source = SOURCES[name]
        if path is None and source.hub is None:
            raise DataError(f"{name} is on no hub: give --from PATH, {source.description}")
        if limit is not None and limit < 1:
            raise DataError(f"--limit: at least 1, got {limit}")
        out = directory / f"{name}.jsonl"
        count = prepare_source(
            source,
            path,
            out,
            limit=limit,
            keep_unanswered=keep_unanswered,
            drop_useless=drop_useless,
            checks=checks,
        )
    except (DataError, OSError) as error:
        return refuse("tempo data prepare: failed", error)
    print("\n".join([f"{out}: {count}", *count.contradicted]))
    if count.dropped[NO_ANSWER] and source.unanswered:
        print(f"{NO_ANSWER}: {source.unanswered}")
    return 0


def print_sources() -> int:
    """Prints every source that can be prepared and returns exit code 0."""
    if sys.stdout.isatty():
        heads = ("name", "description", "hub", "role", "grader")
        rows = [
            (name, source.description, str(source.hub or "--from only"), source.role, source.grader)
            for name, source in SOURCES.items()
        ]
        print_table("", heads, rows)
        return 0
    for name, source in SOURCES.items():
        print(f"{name}: {source.description}\n    {source.hub or '--from only'}; {source.role}; grader {source.grader}")
    return 0


def check_contamination(
    labeled_files: Sequence[Path],
    unlabeled_files: Sequence[Path],
    held_out_files: Sequence[Path],
    *,
    out: Path | None,
    clean: Path | None,
    checks: LabelChecks,
) -> int:
    """Prints how many labeled questions are also evaluated and returns the exit code: 0 success, 2 bad input.

    `out`: a file for the counts and all pairs. `clean`: a directory for the labeled files without those questions.
    """
    evaluated_files = {"unlabeled": unlabeled_files, "held_out": held_out_files}
    try:
        if not any(evaluated_files.values()):
            raise DataError("nothing to check against: give --unlabeled or --held-out files")
        rows = contamination.read_prepared_files(
            labeled_files, [*unlabeled_files, *held_out_files], checks.label_problems
        )
        labeled = {path: rows[path] for path in labeled_files}
        labeled_rows = [row for file_rows in labeled.values() for row in file_rows]
        evaluated = {
            stream: [row for path in dict.fromkeys(files) for row in rows[path]]
            for stream, files in evaluated_files.items()
        }
        pairs = contamination.contaminated_pairs(labeled_rows, evaluated)
        report = contamination.contamination_report(labeled_rows, evaluated, pairs)
        print(contamination.format_table(report))
        if out:
            write_text_atomically(out, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        if clean:
            rows_kept = contamination.write_clean(labeled, {pair.labeled for pair in pairs}, clean)
            for path, count in rows_kept.items():
                print(f"{path}: {count} rows kept")
    except (DataError, OSError) as error:
        return refuse("tempo data check: failed", error)
    return 0
