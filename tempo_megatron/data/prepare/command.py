"""`tempo data`: prepares public sources, and checks labeled questions against evaluated ones."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tempo_megatron.data.prepare import contamination
from tempo_megatron.data.prepare.catalog import SOURCES
from tempo_megatron.data.prepare.question import NO_ANSWER
from tempo_megatron.data.prepare.writing import LabelChecks, prepare_source
from tempo_megatron.data.reading import DataError
from tempo_megatron.utils.atomic_files import write_whole

_BAD_INPUT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", required=True)
    prepare = commands.add_parser("prepare", help="write a source as DIR/NAME.jsonl, from its files or from the hub")
    prepare.add_argument("name", choices=SOURCES, metavar="NAME", help="`tempo data list` prints them")
    prepare.add_argument("--from", dest="path", type=Path, help="file or directory in the source's own schema")
    prepare.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="directory to write to (data)")
    prepare.add_argument("--limit", type=int, metavar="N", help="questions to keep at most, the first ones")
    prepare.add_argument(
        "--keep-unanswered", action="store_true", help="keep questions without an answer: enough for data.unlabeled"
    )
    prepare.add_argument(
        "--drop-useless",
        action="store_true",
        help="drop answers that no response can get right, which are an error otherwise",
    )
    commands.add_parser("list", help="the sources: hub address, role in the paper, grader")
    check = commands.add_parser("check", help="labeled questions that are also evaluated")
    check.add_argument("--labeled", type=Path, nargs="+", required=True, metavar="FILE", help="normalized JSONL")
    check.add_argument("--unlabeled", type=Path, nargs="+", default=[], metavar="FILE")
    check.add_argument("--held-out", type=Path, nargs="+", default=[], metavar="FILE")
    check.add_argument("--out", type=Path, metavar="FILE", help="write counts and all pairs as JSON")
    check.add_argument("--clean", type=Path, metavar="DIR", help="write the labeled files without those questions")


def run(arguments: argparse.Namespace, checks: LabelChecks) -> int:
    """Run a subcommand and return its exit code: 0 for success, 2 for bad input. `checks` finds problems of labels."""
    try:
        if arguments.data_command == "list":
            _list()
        elif arguments.data_command == "prepare":
            _prepare(arguments, checks)
        else:
            _check(arguments, checks)
    except (DataError, OSError) as error:
        lines = "\n".join(f"  {line}" for line in str(error).splitlines())
        print(f"tempo data {arguments.data_command}: failed:\n{lines}", file=sys.stderr)
        return _BAD_INPUT
    return 0


def _prepare(arguments: argparse.Namespace, checks: LabelChecks) -> None:
    source = SOURCES[arguments.name]
    if arguments.path is None and source.hub is None:
        raise DataError(f"{arguments.name} is on no hub: give --from PATH, {source.description}")
    if arguments.limit is not None and arguments.limit < 1:
        raise DataError(f"--limit: at least 1, got {arguments.limit}")
    out = arguments.out / f"{arguments.name}.jsonl"
    count = prepare_source(
        source,
        arguments.path,
        out,
        limit=arguments.limit,
        keep_unanswered=arguments.keep_unanswered,
        drop_useless=arguments.drop_useless,
        checks=checks,
    )
    print("\n".join([f"{out}: {count}", *count.contradicted]))
    if count.dropped[NO_ANSWER] and source.unanswered:
        print(f"{NO_ANSWER}: {source.unanswered}")


def _list() -> None:
    for name, source in SOURCES.items():
        print(f"{name}: {source.description}\n    {source.hub or '--from only'}; {source.role}; grader {source.grader}")


def _check(arguments: argparse.Namespace, checks: LabelChecks) -> None:
    streams = {"unlabeled": arguments.unlabeled, "held_out": arguments.held_out}
    if not any(streams.values()):
        raise DataError("nothing to check against: give --unlabeled or --held-out files")
    rows_by_file = contamination.read_prepared_files(
        [*arguments.labeled, *arguments.unlabeled, *arguments.held_out], checks.label_problems
    )
    labeled_files = {path: rows_by_file[path] for path in arguments.labeled}
    labeled = [row for rows in labeled_files.values() for row in rows]
    evaluated = {
        stream: [row for path in dict.fromkeys(files) for row in rows_by_file[path]]
        for stream, files in streams.items()
    }
    pairs = contamination.contaminated_pairs(labeled, evaluated)
    report = contamination.contamination_report(labeled, evaluated, pairs)
    print(contamination.format_table(report))
    if arguments.out:
        write_whole(arguments.out, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if arguments.clean:
        row_counts = contamination.write_clean(labeled_files, {pair.labeled for pair in pairs}, arguments.clean)
        for path, number in row_counts.items():
            print(f"{path}: {number} rows kept")
