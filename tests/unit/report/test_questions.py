"""The table of questions: what became of each, its votes, and its samples."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from tempo_megatron.report.questions import question_rows
from tempo_megatron.report.reading import read_run
from tests.unit.report.run_copy import copy_run, new_run, write_evaluation, write_lines


def test_what_became_of_a_question_is_told(tmp_path: Path) -> None:
    """Changes below a quarter are often luck."""
    run = new_run(tmp_path / "run")
    write_evaluation(run, 2, {"always": [1.0], "all": [0.0], "once": [0.0]})
    before = {"gained": [0.0] * 4, "lost": [1.0] * 4, "same": [1.0, 0.0] * 2, "all": [1.0] * 4, "none": [0.0] * 4}
    before["always"] = [1.0] * 4
    after = before | {"gained": [1.0, 0.0, 0.0, 0.0], "lost": [1.0, 1.0, 1.0, 0.0]}
    write_evaluation(run, 0, before)
    write_evaluation(run, 5, after)
    rows = {row.id: row for row in question_rows(read_run(run))}
    assert {name: row.label for name, row in rows.items()} == {
        "gained": "gained",
        "lost": "lost",
        "same": "little change",
        "all": "little change",
        "always": "always solved",
        "once": "evaluated once",
        "none": "never solved",
    }
    assert (rows["gained"].start, rows["gained"].end, rows["gained"].shares) == (0.0, 0.25, [(0, 0.0), (5, 0.25)])
    assert next(iter(rows)) in ("gained", "lost")


def test_votes_are_the_largest_group_of_equal_answers(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {"q": [1.0, 0.0, 0.0]})
    (row,) = question_rows(read_run(run))
    assert (row.votes, round(row.vote_share, 2)) == ("2 of 3, wrong", 0.67)
    write_evaluation(run, 0, {"q": [0.0, 0.0]}, cluster=None)
    (row,) = question_rows(read_run(run))
    assert (row.votes, row.vote_share) == ("no answer", 0.0)


def test_equal_samples_are_shown_once_with_their_count(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {"q": [1.0, 1.0, 0.0]}, response="same text", answer="")
    (row,) = question_rows(read_run(run))
    (samples,) = row.samples.values()
    assert [(sample.text, sample.correct, sample.count) for sample in samples] == [
        ("same text", True, 2),
        ("same text", False, 1),
    ]


def test_a_question_that_left_the_evaluation_has_its_own_ends(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {"stays": [0.0], "leaves": [1.0]})
    write_evaluation(run, 5, {"stays": [1.0]})
    rows = {row.id: row for row in question_rows(read_run(run))}
    assert (rows["leaves"].first_iteration, rows["leaves"].last_iteration) == (0, 0)
    assert list(rows["leaves"].samples) == ["iteration 0"]
    write_evaluation(run, 3, {"only here": [1.0]})
    rows = {row.id: row for row in question_rows(read_run(run))}
    assert list(rows["only here"].samples) == ["iteration 3"]
    assert list(rows["stays"].samples) == ["iteration 0", "iteration 5"]


def test_many_long_responses_are_cut_in_their_middle(tmp_path: Path) -> None:
    """The page stays light enough to open."""
    run = new_run(tmp_path / "run")
    long = "begin" + "x" * 9_000 + "end"
    write_evaluation(run, 0, {"q": [0.0]}, response=long)
    (row,) = question_rows(read_run(run))
    text = row.samples["iteration 0"][0].text
    assert text.startswith("beginx") and text.endswith("xend")
    assert len(text) < 6_100 and "3008 characters left out" in text


def test_texts_of_a_large_run_are_not_in_memory_together(tmp_path: Path) -> None:
    """A thousand questions with sixteen responses of 64 kB each would be a gigabyte for each evaluation."""
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {f"q{number}": [0.0, 1.0] for number in range(100)}, response="x" * 100_000)
    tracemalloc.start()
    rows = question_rows(read_run(run))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (run / "samples" / "iteration-000000.jsonl").stat().st_size > 20_000_000
    assert len(rows) == 100 and peak < 4_000_000


def test_questions_have_their_texts_and_answers_only_on_request(tmp_path: Path) -> None:
    record = read_run(copy_run(tmp_path / "run"))
    rows = question_rows(record)
    assert len(rows) == 60 and all(row.text.startswith("Spell") and row.answer == "" for row in rows)
    asked_for = question_rows(record, {rows[0].id: "an answer"})
    assert [row.answer for row in asked_for if row.answer] == ["an answer"]


def test_a_long_question_is_cut_as_responses_are(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_evaluation(run, 0, {"q": [1.0]})
    write_lines(run / "samples" / "questions.jsonl", [{"prompt": "q", "question": "x" * 20_000}])
    (row,) = question_rows(read_run(run))
    assert len(row.text) < 6_100 and "characters left out" in row.text
