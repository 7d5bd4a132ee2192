"""ZebraLogic grids: the response's last JSON object with a solution, compared cell by cell."""

from __future__ import annotations

import json
import re
from typing import Any

_OBJECT = re.compile(r'\{\s*"')
_DECODER = json.JSONDecoder()

Grid = dict[str, dict[str, str]]
"""house -> attribute -> value, all in lower case"""


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether every cell of `answer["answer"]`, {"header": [...], "rows": [[...], ...]}, is in the response's grid.

    The first column numbers the houses. A house that is missing or one too many makes the grid wrong.
    """
    found, gold = _solution(text), gold_grid(answer["answer"])
    return found.keys() == gold.keys() and all(
        found[house].get(attribute) == value for house, row in gold.items() for attribute, value in row.items()
    )


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    try:
        gold = gold_grid(answer["answer"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the label is no grid of `header` and `rows` of its length: {error!r:.80}") from error
    if not grade(json.dumps({"solution": gold}), answer):
        raise ValueError("the grid is not graded right against itself")


def extract(text: str) -> str:
    """The response's grid as JSON with sorted keys; "" for none."""
    found = _solution(text)
    return json.dumps(found, sort_keys=True) if found else ""


def gold_grid(answer: dict[str, Any]) -> Grid:
    """A label's grid by house. Raises KeyError or ValueError for a label of another form."""
    header = [_normalise(name) for name in answer["header"][1:]]
    grid = {
        f"house {_normalise(row[0])}": dict(zip(header, map(_normalise, row[1:]), strict=True))
        for row in answer["rows"]
    }
    if not grid:
        raise ValueError("the grid has no rows")
    return grid


def _solution(text: str) -> Grid:
    """The grid of the last JSON object that has a `solution` of houses; empty for none."""
    found: Grid = {}
    if '"solution"' not in text:
        return found
    opening = _OBJECT.search(text)
    while opening:
        try:
            value, end = _DECODER.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            end = opening.end()
        else:
            found = _as_grid(value.get("solution")) or found
        opening = _OBJECT.search(text, end)
    return found


def _as_grid(value: Any) -> Grid:
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        return {}
    return {
        _normalise(house): {_normalise(attribute): _normalise(cell) for attribute, cell in row.items()}
        for house, row in value.items()
    }


def _normalise(cell: Any) -> str:
    return " ".join(str(cell).lower().split())
