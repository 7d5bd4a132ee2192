"""What a command writes for its user: tables on standard output, refusals on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

BAD_INPUT = 2
"""This is the exit code of a command that refuses its input; argument parsers use the same."""


def refuse(command: str, problems: str | BaseException | Iterable[str]) -> int:
    """Writes why a command refuses its input, an indented line per problem, and returns the exit code 2.

    Of the ranks on one machine only the first writes: all of them find the same problems.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        lines = str(problems).splitlines() if isinstance(problems, str | BaseException) else problems
        print("\n".join([f"{command}:", *(f"  {line}" for line in lines)]), file=sys.stderr)
    return BAD_INPUT


def print_markdown(text: str) -> None:
    """Prints a Markdown document. Rich draws it at a terminal; a file or a pipe gets the text as it is."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text, flush=True)


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Draws a table with Rich. The first column keeps its words whole; the others wrap."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold")
    for index, head in enumerate(heads):
        table.add_column(head, no_wrap=index == 0, style="cyan" if index == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
