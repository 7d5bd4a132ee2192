"""Refuses names that do not say what a value is: python tools/check_names.py PATH...

`make lint` runs it. Exit codes: 0 no such name, 1 there are some (file, line and name are printed).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

VAGUE = frozenset({"found", "made", "drawn", "mine", "theirs", "given", "at", "asked", "done"})
"""Names of variables, parameters, attributes and functions that are refused, with underscores around them too."""


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that the code itself introduces, with its line."""
    for node in ast.walk(tree):
        name: str | None = None
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.ExceptHandler(name=name) | ast.MatchAs(name=name) | ast.MatchStar(name=name):
                pass
            case ast.alias(asname=name):
                pass
        if name:
            yield getattr(node, "lineno", 0), name


def vague_names(source: str) -> list[tuple[int, str]]:
    """Line and name of each refused name, by line."""
    return sorted((line, name) for line, name in bound_names(ast.parse(source)) if name.strip("_") in VAGUE)


def python_files(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths` and the Python files in its folders."""
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def main(arguments: Sequence[str]) -> int:
    problems = [
        f"{file}:{line}: `{name}` does not say what the value is"
        for file in python_files([Path(argument) for argument in arguments])
        for line, name in vague_names(file.read_text())
    ]
    print("\n".join(problems) or "every name says what its value is")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
