"""ZebraLogic grids: the last solution that a response writes as JSON, compared cell by cell."""

from __future__ import annotations

import json
import re
from typing import Any

from tempo_megatron.grading.characters import in_ascii

# Houses are read one by one, because models break the JSON around them: raw line ends and quotes in a text before the
# solution, a trailing comma, single quotes, no outer braces. No pattern looks further than the next brace.
_HOUSE = re.compile(
    r"(?<![\w\\])[\"']?(?:house)?[ _#-]{0,3}(?P<number>\d{1,4})[\"']?\s{0,40}:\s{0,40}\{(?P<cells>[^{}]*)\}",
    re.IGNORECASE,
)
_BETWEEN_HOUSES = re.compile(r"\s*+(?:,\s*+)?")
_ALTERNATIVE = re.compile(r"[^\w{]{0,60}(?:json\W{0,60})?(?:or|alternatively)\b", re.IGNORECASE)
_TEXT = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
_CELL = re.compile(
    rf"\s*(?P<name>{_TEXT}|[A-Za-z]\w*)\s*:\s*(?P<value>{_TEXT}|-?\d[\w.]*|true|false|null)\s*(?:,|$)", re.DOTALL
)
_JOINTS = re.compile(r"(?<=\w)[-_](?=\w)")

Grid = dict[str, dict[str, str]]
"""house -> attribute -> value, all in lower case"""


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Whether every cell of `answer["answer"]`, {"header": [...], "rows": [[...], ...]}, is in the response's grid.

    The first column numbers the houses. A house that is missing or one too many makes the grid wrong.
    """
    solution, gold = _solution(text), gold_grid(answer["answer"])
    return solution.keys() == gold.keys() and all(
        solution[house].get(attribute) == value for house, row in gold.items() for attribute, value in row.items()
    )


def extract(text: str) -> str:
    """The response's grid as JSON with sorted keys; "" for none."""
    solution = _solution(text)
    return json.dumps(solution, sort_keys=True) if solution else ""


def gold_grid(answer: dict[str, Any]) -> Grid:
    """A label's grid by house. Raises KeyError, TypeError or ValueError for a label of another form."""
    header = [_attribute(name) for name in answer["header"][1:]]
    grid = {_house(row[0]): dict(zip(header, map(_cell, row[1:]), strict=True)) for row in answer["rows"]}
    if not grid:
        raise ValueError("the grid has no rows")
    return grid


def check_label(answer: dict[str, Any]) -> None:
    """Raises ValueError that says why no response can be graded right against this label."""
    table = answer["answer"]
    header, rows = (table.get(name) if isinstance(table, dict) else None for name in ("header", "rows"))
    if not isinstance(header, list | tuple) or not isinstance(rows, list | tuple):
        raise ValueError("the answer to a grid question is a table with `header` and `rows`")
    if len(header) < 2 or not rows:
        raise ValueError("the table has no column beside the houses, or no rows")
    if len({_attribute(name) for name in header}) < len(header):
        raise ValueError(f"the table has two columns of one name: {', '.join(map(str, header))}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list | tuple) or len(row) != len(header):
            raise ValueError(f"row {number} of the table has not the {len(header)} cells of its header")
        if not all(isinstance(cell, str | int | float) and cell == cell and _cell(cell) for cell in row):
            raise ValueError(f"row {number} of the table has a cell that is empty or no text")
    if len(gold_grid(table)) < len(rows):
        raise ValueError("the table has two rows of one house")
    columns = [str(name) for name in header[1:]]
    solution = {str(row[0]): dict(zip(columns, row[1:], strict=True)) for row in rows}
    if not grade(json.dumps({"solution": solution}), answer):
        raise ValueError("the table is not graded right against itself: the first column numbers the houses")


def _solution(text: str) -> Grid:
    """The last grid of the text; empty for none, for one whose cells cannot be read, and for alternatives."""
    text = in_ascii(text)
    houses: list[re.Match[str]] = []
    alternative = False
    for house in _HOUSE.finditer(text):
        between = text[houses[-1].end() : house.start()] if houses else ""
        if houses and not _BETWEEN_HOUSES.fullmatch(between):
            alternative = bool(_ALTERNATIVE.match(between))
            houses = []
        houses.append(house)
    rows = {_house(house["number"]): _row(house["cells"]) for house in houses}
    readable = None not in rows.values() and len(rows) == len(houses) and not alternative
    return {house: row for house, row in rows.items() if row is not None} if readable else {}


def _row(cells: str) -> dict[str, str] | None:
    """The cells of one house; None where something is no cell, or an attribute has two."""
    row: dict[str, str] = {}
    position, end = 0, len(cells.rstrip())
    while position < end:
        cell = _CELL.match(cells, position, end)
        if not cell or (attribute := _attribute(_unquoted(cell["name"]))) in row:
            return None
        row[attribute] = _cell(_unquoted(cell["value"]))
        position = cell.end()
    return row


def _unquoted(value: str) -> str:
    """The text that a JSON or Python literal stands for."""
    if value[0] not in "\"'":
        return value
    inner = value[1:-1]
    try:
        return str(json.loads(f'"{inner}"', strict=False)) if value[0] == '"' else inner.replace("\\'", "'")
    except ValueError:
        return inner


def _house(number: Any) -> str:
    named = _attribute(number).removeprefix("house")
    return f"house {named.lstrip('0') or named}"


def _attribute(name: Any) -> str:
    """Blanks, hyphens and underscores do not count in a column's name: "Book Genre" is BookGenre."""
    return "".join(character for character in in_ascii(str(name)).lower() if character.isalnum())


def _cell(value: Any) -> str:
    return " ".join(_JOINTS.sub(" ", in_ascii(str(value)).lower()).split())
