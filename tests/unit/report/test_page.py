"""The page: it needs no network, runs no script of a run's texts, and says what happened."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tempo_megatron.report.page import comparison_page, run_page
from tempo_megatron.report.reading import read_run, read_runs
from tests.unit.report.run_copy import copy_run, new_run, train_rows, write_evaluation, write_lines, write_tokens

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=pwned=1> \u202etxet & 'quotes' \u2028"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the fixture's run."""
    return run_page(read_run(copy_run(tmp_path_factory.mktemp("page") / "demo")))


def own_markup(page: str) -> str:
    """Return a page without the contents of its scripts and styles."""
    return re.sub(r"<(script|style)([^>]*)>.*?</\1>", r"<\1\2></\1>", page, flags=re.DOTALL)


def data(page: str, name: str) -> Any:
    """Return the JSON of the page's script element of that id."""
    match = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_the_top_tells_what_happened(page: str) -> None:
    """Outcome, four figures with intervals, the checkpoint, alarms, and what ran."""
    body = own_markup(page).partition("</head>")[2]
    text = unescape(re.sub(r"<[^>]+>|\s+", " ", body))
    order = [
        "Run demo finished",
        "Worse on unlabeled questions: 66% to 58% right",
        "This is a control run",
        "Unlabeled questions: right responses",
        "Held-out questions: right at least once in 4",
        "The checkpoint of iteration 8 was chosen",
        "The critic's labels were shuffled",
        "What ran",
        "TP 1 x CP 1 x PP 1 x DP 2",
        "36cd0dfe1eec",
        "The shaded bands are 95% intervals",
        "Where the run's time and memory went",
        "How each question fared",
    ]
    text = re.sub(r" +", " ", text)
    positions = [text.find(words) for words in order]
    assert -1 not in positions and positions == sorted(positions)
    assert page.count('class="tile"') == 4
    assert re.search(r"-7\.5 points \[-1\d\.\d, -\d\.\d\]", text)


def test_nothing_is_fetched(page: str) -> None:
    """A cluster without internet shows the page, and nobody learns that it was opened."""
    markup = own_markup(page)
    assert re.findall(r"<link|<iframe|<object|<embed|@import", markup) == []
    assert re.findall(r'(?:src|href)="(?!#)', markup) == []
    assert "Content-Security-Policy" in markup and "default-src 'none'" in markup


def test_the_policy_allows_the_pages_scripts_alone(page: str) -> None:
    """A script that a response smuggled in would not run even if it became an element."""
    allowed = re.findall(r"'(sha256-[^']+)'", page[: page.index("<title>")])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}" for text in scripts]
    assert len(scripts) == 2 and hashes == allowed
    assert "unsafe-inline'; script-src" in page and "script-src 'unsafe" not in page


def test_texts_of_a_run_stay_texts(tmp_path: Path) -> None:
    """Responses, questions, names, settings, and errors may hold anything."""
    run = new_run(tmp_path / "<b>run", config=f"method: {json.dumps(HOSTILE)}\nloop: {{iterations: 3}}\n")
    write_evaluation(run, 0, {"q": [0.0]}, response=HOSTILE, answer=HOSTILE)
    write_evaluation(run, 1, {"q": [1.0]}, response="\ud800 lone", answer="")
    write_lines(run / "samples" / "questions.jsonl", [{"set": "unlabeled", "prompt": "q", "question": HOSTILE}])
    write_tokens(run, 1, {HOSTILE: [HOSTILE, "\ud800 lone"]})
    (run / "interrupted").write_text(HOSTILE)
    (run / "environment.json").write_text(json.dumps({"device": HOSTILE, "commit": HOSTILE}))
    page = run_page(read_run(run))
    page.encode()
    assert page.count("</script>") == page.count("<script") == 5
    markup = own_markup(page)
    assert "<img" not in markup and "<b>run" not in markup
    (followed,) = data(page, "tokens")
    assert (followed["id"], followed["responses"][0]["texts"]) == (HOSTILE, [HOSTILE, "? lone"])
    (question,) = data(page, "questions")
    assert question["text"] == HOSTILE
    assert [samples[0]["text"] for samples in question["samples"].values()] == [HOSTILE, "? lone"]
    comparison = own_markup(comparison_page([read_run(run), read_run(run)]))
    assert "<img" not in comparison and "<b>run" not in comparison


def test_numbers_that_are_not_finite_leave_valid_json(tmp_path: Path) -> None:
    """JSON has no NaN, and one would keep every curve from being drawn."""
    page = run_page(read_run(new_run(tmp_path / "run", train_rows(critic__loss=[float("inf"), 0.5, float("nan")]))))
    (panel,) = data(page, "panels")
    assert (panel["title"], panel["lines"][0]["x"], panel["lines"][0]["y"]) == ("Critic's loss", [2], [0.5])


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    """A person may look a minute after the start."""
    page = run_page(read_run(new_run(tmp_path / "run")))
    assert "No outcome yet" in page and data(page, "panels") == data(page, "questions") == []
    assert 'id="question-table"' not in page


def test_runs_are_compared_question_by_question(tmp_path: Path) -> None:
    """The second run is right on every question that the first is wrong on, so the difference is clear."""
    rows = train_rows(policy__entropy=[0.5, 0.4, 0.4])
    grades = {f"q{number}": [float(number % 4 == 0)] for number in range(20)}
    runs = [new_run(tmp_path / name, rows) for name in ("base", "better")]
    write_evaluation(runs[0], 2, grades)
    write_evaluation(runs[1], 3, {question: [1.0] for question in grades})
    page = comparison_page([read_run(run) for run in runs])
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", own_markup(page)))
    assert re.search(
        r"better \(iteration 3 against 2\) 20 unlabeled right responses 25% 100% \+75\.0 points \[\+\d+\.\d, \+\d",
        text,
    )
    assert "right at least once in" not in text  # with one response to a question this is the share of right ones
    entropy = next(panel for panel in data(page, "panels") if panel["title"] == "Entropy")
    assert [line["name"] for line in entropy["lines"]] == ["base", "better"]
    assert own_markup(page).count('class="legend"') == len(data(page, "panels"))


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [new_run(tmp_path / seed / "run", train_rows(policy__entropy=[0.5])) for seed in ("one", "two")]
    lines = data(comparison_page(read_runs(runs)), "panels")[0]["lines"]
    assert [line["name"] for line in lines] == [str(run) for run in runs]
    assert [record.name for record in read_runs(runs[:1])] == ["run"]
