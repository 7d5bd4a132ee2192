"""Refuses modules and classes that are too long to read: python tools/check_sizes.py PATH...

`make lint` runs it. Exit codes: 0 all are short enough, 1 some are not (they are printed).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from check_names import python_files

MAX_MODULE_LINES = 350
MAX_CLASS_LINES = 200
MAX_PUBLIC_METHODS = 15


def size_problems(source: str) -> list[str]:
    """What is too long in a module, a sentence each."""
    lines = len(source.splitlines())
    problems = [f"{lines} lines, more than {MAX_MODULE_LINES}"] if lines > MAX_MODULE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_CLASS_LINES:
                problems.append(f"class {node.name} has {length} lines, more than {MAX_CLASS_LINES}")
            methods = public_methods(node)
            if methods > MAX_PUBLIC_METHODS:
                problems.append(f"class {node.name} has {methods} public methods, more than {MAX_PUBLIC_METHODS}")
    return problems


def public_methods(node: ast.ClassDef) -> int:
    """The number of public methods and properties that a class defines; a property with a setter counts once."""
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    return len({function.name for function in functions if not function.name.startswith("_")})


def main(arguments: Sequence[str]) -> int:
    problems = [
        f"{file}: {problem}"
        for file in python_files([Path(argument) for argument in arguments])
        for problem in size_problems(file.read_text())
    ]
    print("\n".join(problems) or "every module and class is short enough")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
