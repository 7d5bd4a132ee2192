"""The grader `zebra`: compares the last JSON grid of a response, cell by cell, with a ZebraLogic solution."""

from __future__ import annotations

import json
import re
from typing import Any

from tempo_megatron.grading.ascii_text import to_ascii

# Houses are parsed one by one, because models break the JSON around them: raw line ends and quotes in earlier text,
# trailing commas, single quotes, missing outer braces. No pattern reads past the next brace.
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
_WORD_SEPARATOR = re.compile(r"(?<=\w)[-_](?=\w)")

Grid = dict[str, dict[str, str]]
"""Maps a house to its attributes, and an attribute to its value. All are in lower case."""


def grade(text: str, answer: dict[str, Any]) -> bool:
    """Returns whether the response's grid has each cell of `answer["answer"]`, {"header": [...], "rows": [[...], ...]}.

    The first column numbers the houses. A missing or additional house makes the grid wrong.
    """
    solution, gold = _solution(text), gold_grid(answer["answer"])
    return solution.keys() == gold.keys() and all(
        solution[house].get(attribute) == value for house, row in gold.items() for attribute, value in row.items()
    )


def extract(text: str) -> str:
    """Returns the response's grid as JSON with sorted keys; "" if there is none."""
    solution = _solution(text)
    return json.dumps(solution, sort_keys=True) if solution else ""


def gold_grid(answer: dict[str, Any]) -> Grid:
    """Returns a label's grid. Raises KeyError, TypeError or ValueError for a label of another form."""
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
        raise ValueError("the table has no column besides the houses, or no rows")
    if len({_attribute(name) for name in header}) < len(header):
        raise ValueError(f"the table has two columns with the same name: {', '.join(map(str, header))}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list | tuple) or len(row) != len(header):
            raise ValueError(f"row {number} of the table does not have the {len(header)} cells of its header")
        if not all(isinstance(cell, str | int | float) and cell == cell and _cell(cell) for cell in row):
            raise ValueError(f"row {number} of the table has a cell that is empty or neither a text nor a number")
    if len(gold_grid(table)) < len(rows):
        raise ValueError("the table has two rows for the same house")
    columns = [str(name) for name in header[1:]]
    solution = {str(row[0]): dict(zip(columns, row[1:], strict=True)) for row in rows}
    if not grade(json.dumps({"solution": solution}), answer):
        raise ValueError("the table is not graded right against itself: the first column numbers the houses")


def _solution(text: str) -> Grid:
    """Returns the last grid of the text.

    The grid is empty if the text has none, a cell cannot be read, or two grids are alternatives.
    """
    text = to_ascii(text)
    houses: list[re.Match[str]] = []
    is_alternative = False
    for house in _HOUSE.finditer(text):
        between = text[houses[-1].end() : house.start()] if houses else ""
        if houses and not _BETWEEN_HOUSES.fullmatch(between):
            is_alternative = bool(_ALTERNATIVE.match(between))
            houses = []
        houses.append(house)
    rows = {_house(house["number"]): _row(house["cells"]) for house in houses}
    is_readable = None not in rows.values() and len(rows) == len(houses) and not is_alternative
    return {house: row for house, row in rows.items() if row is not None} if is_readable else {}


def _row(cells: str) -> dict[str, str] | None:
    """Returns the cells of one house; None if a part is no cell or an attribute has two cells."""
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
    """Returns the text of a JSON or Python literal."""
    if value[0] not in "\"'":
        return value
    inner = value[1:-1]
    try:
        return str(json.loads(f'"{inner}"', strict=False)) if value[0] == '"' else inner.replace("\\'", "'")
    except ValueError:
        return inner


def _house(number: Any) -> str:
    """Returns the key of a house: "House 01", "house_1" and 1 are all "house 1"."""
    digits = _attribute(number).removeprefix("house")
    return f"house {digits.lstrip('0') or digits}"


def _attribute(name: Any) -> str:
    """Returns a column's name without blanks, hyphens and underscores, in lower case: "Book Genre" is BookGenre."""
    return "".join(character for character in to_ascii(str(name)).lower() if character.isalnum())


def _cell(value: Any) -> str:
    """Returns a cell in lower case, with hyphens and underscores as blanks."""
    return " ".join(_WORD_SEPARATOR.sub(" ", to_ascii(str(value)).lower()).split())
