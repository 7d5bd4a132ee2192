"""The command line of `tempo doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings", nargs="*", metavar="RECIPE.yaml | key=value", help="a recipe, further YAML files, settings"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings and facts there")
    parser.add_argument(
        "--nodes-file",
        type=Path,
        metavar="FILE",
        help="write there the nodes that training can start on, a line each; no such file is left if it cannot start",
    )
