"""The grader `zebra`: broken JSON, incomplete grids, and which tables a response can match."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tempo_megatron.grading import zebra

TABLE = {"header": ["House", "Name", "BookGenre"], "rows": [["1", "Eric", "science fiction"], ["2", "Al", "mystery"]]}
FIRST = '"House 1": {"Name": "Eric", "BookGenre": "science fiction"}'
SECOND = '"House 2": {"Name": "Al", "BookGenre": "mystery"}'
RIGHT = f'{{"solution": {{{FIRST}, {SECOND}}}}}'
WRONG = RIGHT.replace("Eric", "Bob")


@pytest.mark.parametrize(
    "response",
    [
        RIGHT,
        f"```json\n{RIGHT}\n```",
        f"{{{FIRST}, {SECOND}}}",
        f'"solution": {{{FIRST}, {SECOND}}}',
        f'{{"solution": {{{FIRST},\n{SECOND},\n}},\n}}',
        f'{{"reasoning": "one\ntwo", "solution": {{{FIRST}, {SECOND}}}}}',
        f'{{"reasoning": "\\(x\\)", "solution": {{{FIRST}, {SECOND}}}}}',
        f'{{"reasoning": "He said "hi" {{", "solution": {{{FIRST}, {SECOND}}}}}',
        RIGHT.replace('"', "'"),
        RIGHT.replace('"', "\u201c"),
        RIGHT.replace("House ", ""),
        RIGHT.replace("House ", "house_"),
        RIGHT.replace("House ", "House"),
        RIGHT.replace("House 1", "House 01"),
        RIGHT.replace("BookGenre", "Book Genre"),
        RIGHT.replace("BookGenre", "book_genre"),
        RIGHT.replace("science fiction", "Science-Fiction"),
        RIGHT.replace("Al", "\\u0041l"),
        RIGHT.replace("Al", "\uff21l"),
        RIGHT.replace('"mystery"}', '"mystery",}'),
        RIGHT.replace('"mystery"}', '"mystery", "Pet": "cat", "Age": 12}'),
        f"{WRONG}\nNo, rather:\n{RIGHT}",
        f"{WRONG}\n{RIGHT}",
    ],
)
def test_a_right_grid_is_read_from_broken_json(response: str) -> None:
    """Errors around the houses do not change their cells. The extracted grid gets the same grade."""
    assert zebra.grade(response, {"answer": TABLE})
    assert zebra.grade(zebra.extract(response), {"answer": TABLE})


@pytest.mark.parametrize(
    "response",
    [
        WRONG,
        f"{RIGHT}\nNo, rather:\n{WRONG}",
        f"{WRONG}\n\nor\n\n{RIGHT}",
        f"{WRONG}\nAlternatively:\n```json\n{RIGHT}\n```",
        f'{{"solution": {{{FIRST}}}}}',
        f'{{"solution": {{{FIRST}, {SECOND}, "House 3": {{"Name": "", "BookGenre": ""}}}}}}',
        RIGHT.replace('"Name": "Eric"', '"Name": "Bob", "Name": "Eric"'),
        RIGHT.replace('"BookGenre": "mystery"', '"BookGenre": "romance", "Book Genre": "mystery"'),
        f'{{"solution": {{"House 1": {{"Name": "Bob", "BookGenre": "x"}}, {FIRST}, {SECOND}}}}}',
        RIGHT.replace('"Eric"', '["Eric"]'),
        RIGHT.replace('"Eric"', '["Eric", "Al"]'),
        RIGHT.replace('"Eric"', '"Eric or Al"'),
        RIGHT.replace('"Eric"', '"not Eric"'),
        RIGHT.replace('"mystery"', '"mystery'),
        "The houses are Eric's and Al's.",
        "",
    ],
)
def test_hedged_and_incomplete_grids_are_wrong(response: str) -> None:
    """A cell has one value, an attribute one cell, a response one grid."""
    assert not zebra.grade(response, {"answer": TABLE})


def table(**changes: Any) -> dict[str, Any]:
    return {"answer": TABLE | changes}


@pytest.mark.parametrize(
    "answer",
    [
        {"answer": None},
        {"answer": "Eric"},
        {"answer": {}},
        table(rows=[]),
        table(rows=None),
        table(header=["House"], rows=[["1"], ["2"]]),
        table(rows=[["1", "Eric"], ["2", "Al"]]),
        table(rows=[["1", "Eric", "x", "y"]]),
        table(rows=[["1", "Eric", ""]]),
        table(rows=[["1", "Eric", None]]),
        table(rows=[["1", "Eric", float("nan")]]),
        table(rows=[["1", "Eric", ["x"]]]),
        table(rows=[["1", "Eric", "x"], ["1", "Al", "y"]]),
        table(rows=[["red", "Eric", "x"]]),
        table(header=["House", "Name", "name"]),
    ],
)
def test_a_table_that_no_response_can_match_is_refused(answer: dict[str, Any]) -> None:
    """A question that no response can answer teaches nothing and lowers each metric."""
    with pytest.raises(ValueError, match="table"):
        zebra.check_label(answer)


def test_a_table_that_can_be_matched_is_accepted() -> None:
    """Houses are numbers or names with numbers. Cells are texts or numbers."""
    zebra.check_label({"answer": TABLE})
    zebra.check_label(table(rows=[[1, "Eric", 3], [2, "Al", 4.5]]))
    zebra.check_label(table(rows=[["House 1", "Eric", "a"], ["House 2", "Al", "b"]]))
    assert zebra.grade(
        json.dumps({"solution": {"House 1": {"Name": "Eric", "BookGenre": 3}}}), table(rows=[[1, "Eric", 3]])
    )
