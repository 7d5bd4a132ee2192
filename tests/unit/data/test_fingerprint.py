"""The record that a run directory keeps of its data, and the differences that appear later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempo_megatron.config import Config, DataChanged, SourceConfig
from tempo_megatron.data.fingerprint import (
    data_changes,
    fingerprint_problems,
    learned_questions,
    read_record,
    update_record,
)

ROWS = [{"prompt": f"question {number}", "answer": str(number)} for number in range(48)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run that started with two files."""
    config = Config(run_dir=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    for name in ("labeled", "held_out"):
        write(tmp_path / f"{name}.jsonl", ROWS)
        setattr(config.data, name, [SourceConfig(path=str(tmp_path / f"{name}.jsonl"))])
    assert update_record(config, ["a", "b"])[0] == []
    return config


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("rows", "difference"),
    [
        (ROWS[12:], "12 rows removed, 0 added, 0 changed"),
        ([{**row, "prompt": f"other {row['prompt']}"} for row in [*ROWS, *ROWS[:4]]], "48 rows removed, 52 added, 0"),
        ([{**ROWS[0], "answer": "x"}, *ROWS[1:], {"prompt": "new"}], "0 rows removed, 1 added, 1 changed"),
        ([*ROWS, ROWS[0]], "0 rows removed, 1 added, 0 changed"),
        (ROWS[::-1], "the same rows in another order"),
    ],
)
def test_changed_contents_are_refused_with_what_differs(
    rows: list[dict[str, str]], difference: str, config: Config, tmp_path: Path
) -> None:
    """The error counts removed, added and changed rows, and has one remedy for all files."""
    assert fingerprint_problems(config) == []
    write(tmp_path / "labeled.jsonl", rows)
    line, remedy = fingerprint_problems(config)
    assert line.startswith(f"{tmp_path / 'labeled.jsonl'}: ") and difference in line
    assert "data.changed=accept" in remedy and str(config.run_dir) in remedy
    config.data.changed = DataChanged.accept
    assert fingerprint_problems(config) == []


def test_accepted_contents_are_the_runs_own_from_then_on(config: Config, tmp_path: Path) -> None:
    """The run reports once what it accepted. Learned questions stay learned, and the hash of all contents changes."""
    _, before = update_record(config, ["a", "b"])
    write(tmp_path / "labeled.jsonl", ROWS[1:])
    accepted, after = update_record(config, ["c"])
    assert len(accepted) == 1 and "1 rows removed" in accepted[0] and before != after
    assert data_changes(config) == [] and update_record(config, ["c"]) == ([], after)
    assert learned_questions(config.run_dir) == {"a", "b", "c"}


def test_bytes_that_are_no_rows_are_told_apart_too(config: Config, tmp_path: Path) -> None:
    """Unreadable rows are refused elsewhere. Here they must only count as changed."""
    path = tmp_path / "labeled.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n{"messages": 3}\n{"prompt": null}\n\n')
    assert "48 rows removed, 4 added" in fingerprint_problems(config)[0]
    path.unlink()
    assert fingerprint_problems(config) == []


def test_a_new_run_and_one_without_files_keep_what_there_is(tmp_path: Path) -> None:
    """Tasks are generated, not read from files."""
    config = Config(run_dir=str(tmp_path))
    assert (
        fingerprint_problems(config) == fingerprint_problems(Config()) == []
        and learned_questions(config.run_dir) == frozenset()
    )
    config.data.labeled = [SourceConfig(task="spell_backward", size=3)]
    update_record(config, [])
    record = read_record(config.run_dir)
    assert record is not None and record.files == {}


def test_a_file_that_cannot_be_read_is_left_to_who_reads_its_rows(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of the rows reports the file in one line. The fingerprint must not end the start before that."""

    def unreadable(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("tempo_megatron.data.fingerprint._sha256", unreadable)
    assert fingerprint_problems(config) == []
