"""Files that are not UTF-8 JSONL of rows give one line with file and row, whichever command reads them."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tempo_megatron import cli
from tempo_megatron.config import SourceConfig
from tempo_megatron.data.reading import DataError, RowLocation, format_problems
from tempo_megatron.data.sources import read_rows

GOOD = b'{"prompt": "What is 1+1?", "answer": "2"}\n'


def problems_of(content: bytes, tmp_path: Path, labeled: bool = True) -> list[str]:
    """Return the problems of a file, without its path."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_rows([SourceConfig(path=str(path))], labeled)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(str(path)) for line in lines]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD + '{"prompt": "Combien coûte un café ?", "answer": "2"}\n'.encode("latin-1"), ", line 2: not UTF-8"),
        (GOOD.decode().encode("utf-16"), ": UTF-16 text, not UTF-8 text"),
        (codecs.BOM_UTF16_BE + GOOD.decode().encode("utf-16-be"), ": UTF-16 text, not UTF-8 text"),
        (GOOD.decode().encode("utf-16-le"), ": UTF-16 text or binary, not UTF-8 text"),
        (gzip.compress(GOOD, mtime=0), ": compressed by gzip, not UTF-8 text"),
        (b"PAR1\x15\x04PAR1", ": a Parquet file, not UTF-8 text"),
        (GOOD + rb'{"prompt": "smile \ud83d", "answer": "2"}', r", line 2: half of a character (\ud83d)"),
        (GOOD + rb'{"prompt": "a", "answer": ["\udc00"]}', r", line 2: half of a character (\udc00)"),
        (GOOD + b"\xed\xa0\x80\n", ", line 2: not UTF-8"),
        (GOOD + b"3\n", ", line 2: a row is an object of keys and values, not a number"),
        (b'["a", "b"]\n', ", line 1: a row is an object of keys and values, not a list"),
        (b"null\n", ", line 1: a row is an object of keys and values, not null"),
        (b"[" * 100_000, ", line 1: not JSON"),
        (b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}", ", line 1: not JSON"),
        (b'{"prompt": {"text": "a"}, "answer": "2"}', ", line 1: a row needs `prompt`, a text"),
        (b'{"prompt": ["a"], "answer": "2"}', ", line 1: a row needs `prompt`, a text"),
        (b'{"prompt": "  ", "answer": "2"}', ", line 1: a row needs `prompt`, a text"),
        (b'{"prompt": "a", "messages": 3, "answer": "2"}', ", line 1: a row needs `prompt`, a text"),
        (b'{"prompt": "a", "messages": "hello", "answer": "2"}', ", line 1: a row needs `prompt`, a text"),
        (b'{"prompt": "a", "answer": "2", "source": ["b"]}', ", line 1: `source` is a name, got a list"),
        (b'{"prompt": "a", "answer": "2", "id": {"b": 1}}', ", line 1: `id` is a text or a number, got an object"),
        (b'{"prompt": "a", "answer": "2", "id": true}', ", line 1: `id` is a text or a number, got true or false"),
        (b'{"prompt": "a", "answer": "2", "metadata": "b"}', ", line 1: `metadata` is an object, got a text"),
    ],
)
def test_what_is_no_file_of_rows_is_one_line(content: bytes, problem: str, tmp_path: Path) -> None:
    """Encodings, other formats, scalars and values of other types never raise a plain Python exception."""
    (line,) = problems_of(content, tmp_path)
    assert line.startswith(problem)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    """Editors on Windows write a byte order mark."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + GOOD)
    (row,) = read_rows([SourceConfig(path=str(path))], labeled=True)
    assert row.question == "What is 1+1?" and str(row.location) == f"{path}, line 1"


def test_metadata_alone_is_an_answer_to_those_who_read_it(tmp_path: Path) -> None:
    """Any file may have `metadata`; only reasoning-gym's scorers and a user's own function receive it."""
    path = tmp_path / "rows.jsonl"
    graders = ("exact", "math", "reasoning_gym:countdown", "mine.function")
    path.write_text("".join(json.dumps({"prompt": g, "grader": g, "metadata": {"level": 1}}) + "\n" for g in graders))
    rows = read_rows([SourceConfig(path=str(path))], labeled=False)
    assert [row.answer is not None for row in rows] == [False, False, True, True]


def test_all_that_is_wrong_is_listed_and_a_cause_that_many_rows_share_once(tmp_path: Path) -> None:
    """A file in another schema would otherwise fill the screen."""
    content = b'{"text": "a", "answer": 1}\n' * 12 + b"{broken\n" + GOOD + b'{"prompt": "b"}\n'
    schema, syntax, answer = problems_of(content, tmp_path)
    assert schema.startswith(", lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more: a row needs `prompt`")
    assert syntax.startswith(", line 13: not JSON") and answer == ", line 15: a labeled row needs `answer`"
    assert format_problems([(RowLocation("f", 2), "r"), (RowLocation("f", 5), "r"), (RowLocation("g"), "r")]) == [
        "f, lines 2 and 5: r",
        "g: r",
    ]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("rows.jsonl", b"3\n", "rows.jsonl, line 1: a row is an object"),
        ("rows.jsonl", b'{"problem": {"en": "a"}, "answer": "1"}\n', "line 1: `problem` or"),
        ("rows.jsonl", b'{"problem": "a", "answer": ["1"]}\n', "line 1: `answer` or `Answer` is a text or a number"),
        (
            "rows.jsonl",
            b'{"problem": "a", "answer": NaN}\n',
            "line 1: `answer` or `Answer` is a text or a number, not nan",
        ),
        ("rows.jsonl", rb'{"problem": "\ud83d", "answer": "1"}', "line 1: half of a character"),
        ("rows.jsonl", gzip.compress(GOOD, mtime=0), "rows.jsonl: compressed by gzip"),
        ("rows.json", b'["a"]', "rows.json, row 1: a row is an object"),
        ("rows.json", b'{"examples": 3}', "rows.json: not readable: `examples` is a list of rows"),
        ("rows.json", b'{"examples": ["a"]}', "rows.json, row 1: a row is an object"),
        ("rows.json", b'[{"problem": "caf\xe9"}]', "rows.json, line 1: not UTF-8"),
        ("rows.json", b"[" * 100_000, "rows.json: not readable"),
        ("rows.csv", b"problem,answer\ncaf\xe9,1\n", "rows.csv, line 2: not UTF-8"),
        ("rows.csv", b"problem,answer\na,1,2\n", "rows.csv, row 1: more values than the header has columns"),
        ("rows.parquet", GOOD, "rows.parquet: not readable"),
        ("rows.parquet", b"", "rows.parquet: not readable"),
        ("rows.txt", GOOD, "rows.txt: not readable: supported formats are"),
    ],
)
def test_a_source_in_another_form_is_one_line_with_file_and_row(
    file: str, content: bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This holds for every format that `prepare` reads, and nothing is written."""
    path = tmp_path / file
    path.write_bytes(content)
    assert cli.main(["data", "prepare", "aime-2024", "--from", str(path), "--out", str(tmp_path / "out")]) == 2
    title, *lines = capsys.readouterr().err.splitlines()
    assert title == "tempo data prepare: failed:" and len(lines) == 1 and problem in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("dapo-math-17k", {"prompt": "text", "extra_info": {"index": 1}, "reward_model": {"ground_truth": "1"}}),
        ("dapo-math-17k", {"prompt": ["text"], "extra_info": {"index": 1}, "reward_model": {"ground_truth": "1"}}),
        ("dapo-math-17k", {"prompt": [{"content": "a"}], "extra_info": [], "reward_model": "1"}),
        ("dolci-rl-zero-general", {"messages": "text", "ground_truth": ["a"]}),
        ("dolci-rl-zero-general", {"prompt": "a", "ground_truth": [{"a": 1}]}),
        ("agieval", {"passage": None, "question": "a", "options": "(A) b", "label": "A"}),
        ("zebralogic", {"id": "a", "puzzle": "b", "solution": None}),
        ("zebralogic", {"id": "a", "puzzle": "b", "solution": {"header": "House", "rows": []}}),
        ("zebralogic", {"id": "a", "puzzle": "b", "solution": {"header": ["House"], "rows": [{"House": "1"}]}}),
    ],
)
def test_rows_nested_in_another_way_are_named_in_every_source(
    name: str, row: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users do not see Python's own exceptions, such as AttributeError or IndexError."""
    path = tmp_path / ("lsat-ar.jsonl" if name == "agieval" else "rows.jsonl")
    path.write_text(json.dumps(row) + "\n")
    assert cli.main(["data", "prepare", name, "--from", str(path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"{path}, line 1: " in message and "docs/data.md" in message and len(message.splitlines()) == 2


def test_parquet_under_another_name_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of the hub are sometimes renamed."""
    path = tmp_path / "rows.jsonl"
    pyarrow.parquet.write_table(pyarrow.table({"problem": ["a"], "answer": ["1"]}), path)
    assert cli.main(["data", "prepare", "aime-2024", "--from", str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"{path}: a Parquet file, not UTF-8 text" in capsys.readouterr().err
