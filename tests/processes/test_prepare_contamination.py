"""`tempo data check`: labeled questions that are also evaluated."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tempo_megatron.data.prepare import contamination
from tempo_megatron.data.sources import Row
from tests.disk import full_after
from tests.unit.data.test_prepare import tempo_data

TWENTY = [f"word{n}" for n in range(20)]


def write(path: Path, *questions: str) -> Path:
    rows = [{"id": n, "prompt": text, "answer": "1", "source": path.stem} for n, text in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def exact_matches(labeled: str, evaluated: str) -> list[bool]:
    """Return, for each contaminated pair of the two questions, whether it is exact."""
    labeled_row, evaluated_row = (Row(text, None, text, "s", "exact") for text in (labeled, evaluated))
    return [pair.exact for pair in contamination.contaminated_pairs([labeled_row], {"held_out": [evaluated_row]})]


def test_thirteen_words_in_common_are_contamination_and_twelve_are_not() -> None:
    """The boundary holds wherever the n-gram is in either question."""
    for start in (0, 4, 7):
        thirteen, twelve = " ".join(TWENTY[start : start + 13]), " ".join(TWENTY[start : start + 12])
        assert exact_matches(f"before {thirteen} after", " ".join(TWENTY)) == [False]
        assert exact_matches(f"before {twelve} after it ends so", " ".join(TWENTY)) == []


def test_a_question_shorter_than_thirteen_words_matches_as_a_whole() -> None:
    """Case and spacing do not matter; punctuation and any other text make another question."""
    assert exact_matches("What  is\nONE and one?", "what is one and one?") == [True]
    assert exact_matches("What is one and one", "what is one and one?") == []
    assert exact_matches("What is one and one? Say it.", "what is one and one?") == []


def test_the_report_counts_by_stream_and_source_and_clean_files_lose_those_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files to JSON, table and cleaned files. A conversation matches by the text of its turns."""
    labeled = write(tmp_path / "known.jsonl", "short one", " ".join(TWENTY), "kept alone", "said in turns")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Said in  turns"}]
    talk = tmp_path / "talk.jsonl"
    talk.write_text(json.dumps({"id": "t", "messages": turns, "source": "talk"}))
    adapted = write(tmp_path / "adapted.jsonl", "Short ONE", "unrelated")
    held_out = write(tmp_path / "later.jsonl", " ".join(["before", *TWENTY[:13]]))
    report, clean = tmp_path / "report.json", tmp_path / "clean"
    options = ("--labeled", labeled, "--unlabeled", adapted, talk, "--held-out", held_out)
    assert tempo_data("check", *options, "--out", report, "--clean", clean) == 0
    figures = json.loads(report.read_text())
    assert figures["labeled"] == {"questions": 4, "contaminated": 3, "share": 0.75}
    assert figures["evaluated"] == [
        {"stream": "unlabeled", "source": "adapted", "questions": 2, "exact": 1, "13-gram": 0, "share": 0.5},
        {"stream": "unlabeled", "source": "talk", "questions": 1, "exact": 1, "13-gram": 0, "share": 1.0},
        {"stream": "held_out", "source": "later", "questions": 1, "exact": 0, "13-gram": 1, "share": 1.0},
    ]
    assert figures["pairs"] == [
        {"labeled": "known.jsonl:0", "unlabeled": "adapted.jsonl:0", "source": "adapted", "kind": "exact"},
        {"labeled": "known.jsonl:1", "held_out": "later.jsonl:0", "source": "later", "kind": "13-gram"},
        {"labeled": "known.jsonl:3", "unlabeled": "talk.jsonl:t", "source": "talk", "kind": "exact"},
    ]
    assert "3 of 4 (75.00%)" in capsys.readouterr().out
    assert (clean / "known.jsonl").read_text() == labeled.read_text().splitlines(keepends=True)[2]
    assert tempo_data("check", *options, "--clean", tmp_path) == 2  # It would replace the files that it reads.
    assert len(labeled.read_text().splitlines()) == 4


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the full disk. Half a report would look like one with fewer pairs."""
    known, report = write(tmp_path / "known.jsonl", "a"), tmp_path / "out" / "report.json"
    report.parent.mkdir()
    report.write_text("earlier")
    with full_after(16):
        assert tempo_data("check", "--labeled", known, "--held-out", known, "--out", report) == 2
    assert "too large" in capsys.readouterr().err
    assert [file.read_text() for file in report.parent.iterdir()] == ["earlier"]


def test_nothing_to_check_against_and_bad_files_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists all unreadable files."""
    labeled = write(tmp_path / "known.jsonl", "a")
    assert tempo_data("check", "--labeled", labeled) == 2
    assert tempo_data("check", "--labeled", labeled, "--held-out", tmp_path / "x.jsonl", tmp_path / "y.jsonl") == 2
    message = capsys.readouterr().err
    assert "nothing to check against" in message and "x.jsonl" in message and "y.jsonl" in message


def test_labeled_rows_need_an_answer_and_evaluated_rows_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training would refuse such a file, so the check names file and rows. A clean copy of it is not written."""
    known = write(tmp_path / "known.jsonl", "a", "b")
    open_questions = tmp_path / "open.jsonl"
    open_questions.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("c", "d")))
    assert tempo_data("check", "--labeled", known, "--unlabeled", open_questions) == 0
    clean = tmp_path / "clean"
    for other in (known, open_questions):
        options = ("--labeled", known, open_questions, "--unlabeled", other, "--clean", clean)
        assert tempo_data("check", *options) == 2 and not clean.exists()
        message = capsys.readouterr().err
        assert message.count(f"{open_questions}, lines 1 and 2: a labeled row needs `answer`") == 1
        assert str(known) not in message


def test_the_time_grows_with_words_not_with_pairs() -> None:
    """Twice as many questions of 20 words run about twice as many lines of Python. Comparing all pairs would run four
    times as many."""
    draw, words = random.Random(0), [f"w{n}" for n in range(5000)]

    def questions(stream: str, count: int) -> list[Row]:
        return [Row(" ".join(draw.choices(words, k=20)), None, f"{stream}{n}", "s", "exact") for n in range(count)]

    def lines(count: int) -> int:
        """Return the lines that run while `count` questions are compared with as many others and one copy."""
        labeled, evaluated, run = questions("l", count), questions("e", count), 0
        evaluated.append(Row(labeled[7].question.upper(), None, "copy", "s", "exact"))

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal run
            run += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            pairs = contamination.contaminated_pairs(labeled, {"unlabeled": evaluated})
        finally:
            sys.settrace(before)
        assert [(pair.labeled, pair.evaluated, pair.exact) for pair in pairs] == [("l7", "copy", True)]
        return run

    assert lines(1000) < 2.5 * lines(500)
